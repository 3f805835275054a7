"""A model whose features are what it is given, and loaders of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Given(nn.Module):
    """[B, H] to logits of C classes, the first C features; `features` is a layer that changes nothing."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.head = nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(width)[:classes])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def batches(x: Tensor, y: Tensor, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """(x, y) cut into batches."""
    return list(zip(x.split(size), y.split(size), strict=True))


def clusters(
    count: int, width: int, classes: int, *, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Normal samples around class means that a `Given` model tells apart: float32 [count, width], int64 [count]."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    return torch.randn(count, width, generator=generator) * spread + 3 * torch.eye(width)[y], y
