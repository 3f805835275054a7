"""Counts what a training step costs: convolutions run forward, and gradients computed for their inputs and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class PassCounter(TorchDispatchMode):
    """Context manager; counts every convolution that runs inside it.

    `FlopCounterMode` cannot do this: it raises for `torch.autograd.grad` on a leaf (torch 2.13), and it does not tell
    input gradients from weight gradients.

    Attributes:
        forward: convolutions.
        input_gradients, weight_gradients: gradients that convolutions' backward calls were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.input_gradients = self.weight_gradients = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forward += 1
        elif func is torch.ops.aten.convolution_backward.default:
            to_input, to_weight, _ = args[-1]
            self.input_gradients += to_input
            self.weight_gradients += to_weight
        return func(*args, **(kwargs or {}))


def convolutions(encoder: nn.Module) -> int:
    """Convolutions of one forward pass F."""
    return sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
