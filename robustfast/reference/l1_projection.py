"""Euclidean projection onto an l1 ball inside the box, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["REACH", "l1_projection"]

REACH = 1e6
"""The distance from x beyond which one entry counts as no farther: differences from tau stay exact to 1e-10."""


def l1_projection(x_adv: Tensor, x: Tensor, eps: Tensor, *, bounds: tuple[float, float]) -> Tensor:
    """The point of {z: |z - x|_1 <= eps, lo <= z <= hi} nearest to `x_adv`.

    With d = x_adv - x, r the room from x to the wall on d's side, and

        phi(tau) = sum_i min(max(|d_i| - tau, 0), r_i),

    it is z = clip(x + sign(d) max(|d| - tau, 0)) where phi(tau) = eps, or clip(x_adv) where phi(0) <= eps (Croce and
    Hein 2021, arXiv:2103.01208, proposition 2.1, whose lambda is tau). phi falls, in straight pieces that end at |d_i|
    and |d_i| - r_i: sort these, find the piece that holds eps, and solve it. Sums run in float64, and tau's is one sum
    over the entries that make up the piece.

    Args:
        x_adv, x: [B, ...] float32 or float64; x in the box. A nan in `x_adv` counts as x.
        eps: [] or [B], dtype of the images.
        bounds: lowest and highest pixel value.
    """
    delta = x_adv - x
    delta = torch.where(delta.isnan(), 0, delta)
    size = delta.abs().flatten(1).double().clamp(max=REACH)
    lo, hi = (x.new_full((), bound) for bound in bounds)
    room = torch.where(delta > 0, hi - x, x - lo).flatten(1).double().clamp(min=0)
    room = torch.where(size > 0, room, 0)
    radius = eps.double().reshape(-1, 1)
    tau, outside = _threshold(size, room, radius)
    shape = (-1, *[1] * (x.dim() - 1))
    shrunk = (delta.sign() * (size - tau).clamp(min=0).reshape_as(x)).to(x.dtype)
    kept = torch.where(x_adv.isnan(), x, x_adv)
    return torch.where(outside.reshape(shape), x + shrunk, kept).clamp(*bounds)


def _threshold(size: Tensor, room: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """tau [B, 1] with phi(tau) = radius, and whether there is one above zero, bool [B, 1]; size and room [B, n]."""
    outside = torch.minimum(size, room).sum(1, keepdim=True) > radius
    # From large tau to small: phi's slope grows by one where an entry starts to move, and shrinks where it is at a
    # wall.
    kinks = torch.cat([size, (size - room).clamp(min=0), torch.zeros_like(size[:, :1])], 1)
    slope = torch.ones_like(kinks)
    slope[:, size.shape[1] :] = -1
    slope[:, -1] = 0
    kinks, order = kinks.sort(1, descending=True)
    lengths = torch.diff(kinks, dim=1).neg()
    grown = (slope.gather(1, order).cumsum(1)[:, :-1] * lengths).cumsum(1)
    phi = torch.cat([torch.zeros_like(grown[:, :1]), grown], 1)
    last = ((phi <= radius).sum(1, keepdim=True) - 1).clamp(0, kinks.shape[1] - 2)
    middle = (kinks.gather(1, last) + kinks.gather(1, last + 1)) / 2
    at_wall = size - room >= middle
    moving = (size > middle) & ~at_wall
    total = torch.where(moving, size, torch.where(at_wall, room, 0)).sum(1, keepdim=True)
    return (total - radius) / moving.sum(1, keepdim=True).clamp(min=1), outside
