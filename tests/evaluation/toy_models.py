"""Models of the digits that train in a moment, sound ones and such that hide their gradients."""

from __future__ import annotations

import os
import time
from functools import cache

import torch
from torch import Tensor, nn

from robustfast.attacks.adam import adam_step
from robustfast.data import load


@cache
def _weights() -> tuple[Tensor, Tensor]:
    data = load("digits", "train")
    x, y = (data.images.flatten(1) / data.scale).double(), data.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(64, 10).double()
    # No torch.optim: it imports torch._dynamo, which takes longer than all else that a process does with a toy.
    weights = list(layer.parameters())
    means = [(torch.zeros_like(value), torch.zeros_like(value)) for value in weights]
    counts = [torch.zeros((), dtype=torch.float64) for _ in weights]
    for _ in range(100):
        with torch.enable_grad():
            grads = torch.autograd.grad(nn.functional.cross_entropy(layer(x), y), weights)
        for value, grad, mean, count in zip(weights, grads, means, counts, strict=True):
            adam_step(value.detach(), grad, *mean, count, step_size=0.05)
    return layer.weight.detach(), layer.bias.detach()


class Digits(nn.Module):
    """A linear model in float64, whose result for an image does not depend on the batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        weight, bias = _weights()
        self.weight, self.bias = nn.Parameter(weight * scale), nn.Parameter(bias * scale)

    def forward(self, x: Tensor) -> Tensor:
        # Slow on demand, for the test that kills it on the way.
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        flat = x.flatten(1).double()
        # As a sum over pixels of its own for each image: a product of matrices may round with the batch.
        return (flat[:, None] * self.weight).sum(2) + self.bias


class Quantised(Digits):
    """Rounds its input, so that the gradient is zero everywhere: shattered gradients."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * 4).round() / 4)


class Noisy(Digits):
    """Adds a little noise in each pass, and makes most of the gradient noise."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        return super().forward(x.detach() + (x - x.detach()) * (1 + 4 * noise) + 0.05 * noise)


class Detached(Digits):
    """Gives no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()).detach()


class Rolled(Digits):
    """Another model of the same weights."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(self.shift, 1)


class InPlace(Digits):
    """Spoils the images it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5).mul_(4))


def digits(scale: float = 1.0) -> nn.Module:
    return Digits(scale)


def quantised() -> nn.Module:
    return Quantised()


def saturated() -> nn.Module:
    """Logits so large that the cross entropy of what it gets right is 0 in float64, with its gradient."""
    return Digits(5000.0)


def noisy() -> nn.Module:
    return Noisy()


def detached() -> nn.Module:
    return Detached()


def plain():
    """A function that is no module."""
    return Digits().forward


def words() -> str:
    return "no model"


def in_place() -> nn.Module:
    return InPlace()


def three() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


class FirstThree(Digits):
    """Tells three digits apart, in float32: DLR is constant where the label is in third place."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :3].float()


def first_three() -> nn.Module:
    return FirstThree()


def five() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
