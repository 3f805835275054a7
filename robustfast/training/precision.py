"""Mixed precision: which arithmetic the model runs in, and the loss scaling that half precision needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = ["PRECISIONS", "Precision"]

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The arithmetic of one run.

    bf16 and fp16 are autocast: convolutions and matrix products in the short type; weights, batch-norm statistics and
    losses in float32. fp16 also scales the loss, since gradients under 6e-8 would vanish, and skips a step whose
    gradients overflow.

    Args:
        name: "fp32", "bf16" or "fp16".
        device: where the model lies.

    Raises:
        UserError: an unknown name, or this PyTorch cannot compute in it on this device.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        self.dtype = lookup("precision", PRECISIONS, name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
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

    def backward(self, loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Accumulate the (scaled) gradient of `loss` into `parameters` alone."""
        self.scaler.scale(loss).backward(inputs=list(parameters))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step with the gradients scaled back; adapt the scale after each phase, whichever optimizer it moved."""
        self.scaler.step(optimizer)
        self.scaler.update()


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
