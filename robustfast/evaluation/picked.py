"""Test images picked by their positions, attacked as an evaluation of the whole split attacks them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.evaluation.parts import PartContext
from robustfast.evaluation.progress import AttackBar

__all__ = ["evaluated", "of_class", "picked"]


def evaluated(context: PartContext, most: int) -> Tensor:
    """Positions int64 of the evaluated test images, at even distances at most so many of them."""
    count = min(most, context.images)
    return torch.arange(count) * len(context.split) // count


def of_class(context: PartContext, label: int, most: int) -> Tensor:
    """Positions int64 of test images of a class: the first ones, at most so many and as many as are evaluated."""
    return (context.split.labels == label).nonzero().flatten()[: min(most, context.images)]


def picked(
    context: PartContext, positions: Tensor, *, bar: AttackBar | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(x, y, positions in the split) of the images at `positions`, int64, in batches on the model's device."""
    for x, y, index in context.batches(context.split.take(positions), bar=bar):
        yield x, y, positions.to(index.device)[index]
