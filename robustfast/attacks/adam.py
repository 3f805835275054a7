"""Adam, as a step on tensors that a CUDA graph can hold."""

from __future__ import annotations

from torch import Tensor

__all__ = ["adam_step"]

BETA_MEAN, BETA_SQUARE, TINY = 0.9, 0.999, 1e-8


def adam_step(
    value: Tensor, grad: Tensor, mean: Tensor, square: Tensor, count: Tensor, *, step_size: float
) -> None:
    """One descent step of Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1) with its default betas, in place.

    `torch.optim.Adam` keeps its count on the host or takes weights it owns; here all state is the caller's, so that
    rows of it can be left out between blocks of steps.

    Args:
        value: moved by `step_size` * mean / (sqrt(square) + 1e-8), both corrected for their start at zero.
        grad: like `value`; entries that are nan or infinite count as zero, for they would stay in the averages for
            good.
        mean, square: like `value`, zero before the first step.
        count: float64 [], steps taken so far; counted up.
        step_size: learning rate, in the units of `value`.
    """
    grad = grad.to(value.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    count += 1
    mean.mul_(BETA_MEAN).add_(grad, alpha=1 - BETA_MEAN)
    square.mul_(BETA_SQUARE).addcmul_(grad, grad, value=1 - BETA_SQUARE)
    corrected = (square / (1 - BETA_SQUARE**count)).sqrt_().add_(TINY)
    value.sub_((mean / (1 - BETA_MEAN**count)).div_(corrected).mul_(step_size))
