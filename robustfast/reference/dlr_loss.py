"""The difference of logits ratio, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.reference.ranking import inside, largest, wide

__all__ = ["dlr_loss", "dlr_loss_backward"]

FLOOR = 1e-12
"""Added to the denominator, as in the authors' code."""


def dlr_loss(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), or -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) with a target.

    Args:
        logits: [B, K], counted in float32 at least.
        y, target: int64 [B].

    Returns:
        [B], float32, or float64 for float64 logits; nan where a label is no class.
    """
    parts = _parts(wide(logits), y, target)
    return torch.where(parts.known, parts.margin / parts.gap, torch.nan)


def dlr_loss_backward(grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Gradient of the logits [B, K]: at the two classes of the margin, and at those that the gap is taken between."""
    parts = _parts(wide(logits), y, target)
    margin_slope = grad / parts.gap
    gap_slope = -grad * ((parts.margin / parts.gap) / parts.gap)
    columns = torch.arange(logits.shape[1], device=logits.device)

    def at(classes: Tensor, slope: Tensor) -> Tensor:
        return torch.where(columns == classes[:, None], slope[:, None], 0)

    rows = at(parts.other, margin_slope) - at(parts.own, margin_slope) + at(parts.classes[:, 0], gap_slope)
    if target is None:
        rows = rows - at(parts.classes[:, 2], gap_slope)
    else:
        half = gap_slope * 0.5
        rows = rows - at(parts.classes[:, 2], half) - at(parts.classes[:, 3], half)
    return torch.where(parts.known[:, None], rows, torch.nan).to(logits.dtype)


class _Parts(NamedTuple):
    margin: Tensor
    gap: Tensor
    other: Tensor
    own: Tensor
    classes: Tensor
    known: Tensor


def _parts(z: Tensor, y: Tensor, target: Tensor | None) -> _Parts:
    """What numerator and denominator are made of, each [B]; the classes of the largest logits [B, 3 or 4]."""
    own, known = inside(y, z.shape[1])
    top, classes = largest(z, 3 if target is None else 4)
    if target is None:
        other = torch.where(classes[:, 0] == own, classes[:, 1], classes[:, 0])
        gap = top[:, 0] - top[:, 2] + FLOOR
    else:
        other, there = inside(target, z.shape[1])
        known = known & there
        gap = top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + FLOOR
    pair = z.gather(1, torch.stack([other, own], 1))
    return _Parts(pair[:, 0] - pair[:, 1], gap, other, own, classes, known)
