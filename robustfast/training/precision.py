"""Mixed precision: which arithmetic the model runs in, and the loss scale that half precision needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = ["PRECISIONS", "LossScale", "Precision"]

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The arithmetic of one run.

    bf16 and fp16 are autocast: convolutions and matrix products in the short type; images, weights, batch-norm
    statistics and losses in float32.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: where the model lies.

    Attributes:
        device: the argument.
        dtype: the short type; None for fp32.

    Raises:
        UserError: an unknown name, or this PyTorch cannot compute in it on this device.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = lookup("precision", PRECISIONS, name)
        if self.dtype is not None:
            _try(name, self.dtype, device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which the model's forward passes run.

        Its cache of converted weights is off: in older releases of torch a pass without gradients (labels of the
        attack) leaves weights there through which the training pass after it gets no gradient.
        """
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)

    def loss_scale(self) -> LossScale | None:
        """A new loss scale where this arithmetic needs one."""
        return LossScale(self.device) if self.dtype == torch.float16 else None


class LossScale:
    """What the losses of one optimizer are multiplied by, so that their gradients do not vanish in half precision.

    fp16 has no numbers under 6e-8. A step whose scaled gradient overflows is left out and the scale halved; after 2,000
    steps in a row without one it doubles. The law is that of `torch.amp.GradScaler`. One scale belongs to one
    optimizer: gradients of a discriminator and of an encoder differ in size, and where one overflows, the other one's
    step is as good as ever. A scale never waits for the device.

    Args:
        device: where the gradients are.

    Attributes:
        value: the scale, float32 [].
    """

    START, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), self.START, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)

    def unscale(self, gradients: Sequence[Tensor]) -> Tensor:
        """Divide the gradients by the scale, in place.

        Returns:
            1 where one of them was not finite, else 0: float32 [].
        """
        overflow = torch.zeros_like(self.value)
        if gradients:
            inverse = self.value.double().reciprocal().float()
            torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), overflow, inverse)
        return overflow

    def update(self, overflow: Tensor) -> None:
        """Adapt the scale, once for each step, to what `unscale` returned."""
        torch._amp_update_scale_(self.value, self._good, overflow, self.GROWTH, self.BACKOFF, self.INTERVAL)

    @property
    def exhausted(self) -> Tensor:
        """Whether gradients overflow at every scale, bool []: below 1 they are not even finite as they are."""
        return self.value < 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.value.copy_(state["value"])
        self._good.copy_(state["good"])


def _try(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """One small convolution forward and backward: processors and builds differ in what they support."""
    x = torch.ones(1, 1, 4, 4, device=device, requires_grad=True)
    weight = torch.ones(1, 1, 3, 3, device=device)
    try:
        with torch.autocast(device.type, dtype=dtype):
            y = nn.functional.conv2d(x, weight)
        torch.autograd.grad(y.float().sum(), x)
    except RuntimeError as error:
        raise UserError(
            f"--precision {name}: this PyTorch ({torch.__version__}) cannot compute convolutions in it on "
            f"{device.type} ({str(error).splitlines()[0]}); use --precision fp32"
        ) from None
