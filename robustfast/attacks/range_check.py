"""Check the values of images and labels without making the host wait for the attack."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Extremes"]


class Extremes:
    """Smallest and largest value of `x` and `y`, computed and sent to the host before the loop, judged after it.

    On CUDA the copy has its own event, so that judging waits for the copy and never for the loop queued behind it.
    Inside a caller's own CUDA graph capture nothing can be read: there the values go unchecked.

    Args:
        x: images [B, ...].
        y: labels int64 [B], or probabilities [B, K] where `loss` is "kl"; not looked at where `loss` is a caller's
            own.
    """

    def __init__(self, x: Tensor, y: Tensor, loss: object) -> None:
        self._loss = loss
        self._event = None
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            self._values = None
            return
        pairs = [torch.aminmax(_flat(x))]
        if loss == "kl":
            pairs += [torch.aminmax(y), torch.aminmax(y.sum(1))]
        elif isinstance(loss, str):
            pairs += [torch.aminmax(y)]
        values = torch.stack([value.to(x.dtype) for pair in pairs for value in pair])
        if x.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        self._values = values

    def check(self, bounds: tuple[float, float], classes: int) -> None:
        """Judge what was found.

        Args:
            bounds: lowest and highest pixel value.
            classes: K, as the model's logits showed it.

        Raises:
            ValueError: pixels outside `bounds` or nan, labels outside [0, K), or targets that are no probabilities.
        """
        if self._values is None:
            return
        if self._event is not None:
            self._event.synchronize()
        lo, hi, *target = self._values.tolist()
        # Written so that nan fails too.
        if not (bounds[0] <= lo and hi <= bounds[1]):
            raise ValueError(
                f"x has values from {lo:.6g} to {hi:.6g}, expected pixels in [{bounds[0]:g}, {bounds[1]:g}]; "
                f"{_mend(lo, hi)}"
            )
        if self._loss == "kl":
            smallest, _, least, most = target
            if not (smallest >= 0 and least > 0.99 and most < 1.01):
                raise ValueError(
                    f"y has values from {smallest:.6g} and rows that sum to {least:.6g} up to {most:.6g}, "
                    f"loss 'kl' expects probabilities; take logits through softmax first"
                )
        elif target and not (target[0] >= 0 and target[1] < classes):
            raise ValueError(
                f"y has labels from {target[0]:.0f} to {target[1]:.0f}, expected 0 to {classes - 1}: "
                f"the model returned {classes} logits"
            )


def _mend(lo: float, hi: float) -> str:
    if lo != lo:
        return "look for what made the nan"
    if lo >= 0 and hi > 2:
        return "eps, step_size and bounds are in units of [0, 1]: divide bytes by 255"
    return "if x is normalised by mean and std, pass raw pixels and normalise inside the model; else clamp it"


def _flat(x: Tensor) -> Tensor:
    """The values of `x` as they lie in memory: aminmax over contiguous memory is six times faster than over a
    permuted view.
    """
    order = sorted(range(x.dim()), key=lambda axis: (x.stride(axis), x.size(axis)), reverse=True)
    return x.permute(order)
