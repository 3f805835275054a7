"""A three-way model small enough to compute its losses by hand: two pixels, two classes, one weight an encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustfast.models import ThreeWay


class Scale(nn.Module):
    """z = factor * the two pixels of an image."""

    features = 2

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x.flatten(1)


def hand_made_model(robust: float, non_robust: float) -> ThreeWay:
    """Logits of the ways are the pixels times `robust` (r), `non_robust` (n) and their sum (s). Float64."""
    model = ThreeWay(Scale, num_classes=2)
    model.encoder_r, model.encoder_n = Scale(robust), Scale(non_robust)
    first, _, last = model.head
    with torch.no_grad():
        first.weight.copy_(torch.cat([torch.eye(2), torch.eye(2)], dim=1))
        last.weight.copy_(torch.eye(2))
        first.bias.zero_()
        last.bias.zero_()
    return model.double()


def images(*pixels: tuple[float, float]) -> Tensor:
    """[B, 1, 1, 2], float64."""
    return torch.tensor(pixels, dtype=torch.float64).reshape(-1, 1, 1, 2)


def cross_entropy(factor: float, pixels: tuple[float, float], label: int) -> float:
    """-log softmax(factor * pixels)[label], in plain Python."""
    return math.log(sum(math.exp(factor * p) for p in pixels)) - factor * pixels[label]


def softmax(factor: float, pixels: tuple[float, float]) -> list[float]:
    total = sum(math.exp(factor * p) for p in pixels)
    return [math.exp(factor * p) / total for p in pixels]
