"""The smallest step onto a hyperplane within a box, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fab_projection"]


def fab_projection(x: Tensor, w: Tensor, b: Tensor, *, norm: str, bounds: tuple[float, float]) -> Tensor:
    """The step d of smallest `norm` with <w, x + d> = b and x + d in `bounds`; where none is, as near as the box lets.

    All in float64, rounded once at the end. Every entry moves by some share of its room, the way to its wall; which
    share is a matter of one number for the whole sample, found between two of the points where an entry hits its wall.

    Args:
        x: [M * B, ...] float32 or float64.
        w, b: [B, ...] and [B], dtype of x; row i of x belongs to row i % B of both.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
    """
    if not x.numel():
        return torch.empty_like(x)
    times = len(x) // len(w)
    point, normal = (t.flatten(1).double() for t in (x, w.repeat(times, *[1] * (w.dim() - 1))))
    gap = (normal * point).sum(1, keepdim=True) - b.double().repeat(times)[:, None]
    # Turned so that the step has to lower <normal, x> by gap >= 0.
    normal, gap = torch.where(gap < 0, -normal, normal), gap.abs()
    slope = normal.abs()
    room = torch.where(normal > 0, point - bounds[0], bounds[1] - point).clamp(min=0)
    reach = slope * room
    total = reach.sum(1, keepdim=True)
    if norm == "l1":
        step = room * _shares(slope, reach, gap)
    else:
        speed = torch.ones_like(slope) if norm == "linf" else slope
        step = torch.minimum(_multiplier(speed, slope, room, gap) * speed, room)
    step = torch.where(total > gap, step, room)
    # A row with a nan or an infinity has no hyperplane, an entry without slope no part in one.
    step = torch.where((slope > 0) & gap.isfinite() & total.isfinite(), step, 0)
    return torch.where(normal > 0, -step, step).to(x.dtype).reshape(x.shape)


def _multiplier(speed: Tensor, slope: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """The m with sum(slope * min(m * speed, room)) = gap: entries hit their walls at m = room / speed, in turn."""
    wall, order = torch.where(speed > 0, room / speed, torch.inf).sort(1)
    reach = (slope * room).gather(1, order)
    before = reach.cumsum(1) - reach
    pull = (slope * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    multipliers = (gap - before) / pull
    first = (multipliers <= wall).int().argmax(1, keepdim=True)
    return multipliers.gather(1, first)


def _shares(slope: Tensor, reach: Tensor, gap: Tensor) -> Tensor:
    """Steepest entries first: 1 above some slope, 0 below it, and the same share for all that tie with it."""
    sorted_slope, order = slope.sort(1, descending=True)
    enough = reach.gather(1, order).cumsum(1) >= gap
    threshold = sorted_slope.gather(1, enough.int().argmax(1, keepdim=True))
    above = torch.where(slope > threshold, reach, 0).sum(1, keepdim=True)
    tied = torch.where(slope == threshold, reach, 0).sum(1, keepdim=True)
    share = torch.where(tied > 0, (gap - above) / tied, 0).clamp(0, 1)
    return torch.where(slope > threshold, 1, torch.where(slope == threshold, share, 0))
