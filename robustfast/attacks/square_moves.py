"""Where the Square attack starts, and what one query changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.draws import uniform
from robustfast.attacks.square_windows import pattern
from robustfast.ops.l1_projection import l1_projection

__all__ = ["Move", "as_images", "grid", "numbers", "patterns", "recolour", "remodel", "stripes"]

Move = Callable[[int, Tensor, Tensor], None]
"""(number of the query in its block, images [B, C, H, W], where to write the changed ones) -> None."""

# Of a norm that is divided by; the codes' own.
_TINY = 1e-12

# Under l1 all is projected onto a ball this much smaller, as in AutoAttack's code: room for rounding.
_INSIDE = 1 - 1e-6


def as_images(x: Tensor) -> Tensor:
    """A view [B, C, H, W] of images [B, ...]: the last two dimensions, or one row of features."""
    if x.dim() == 4:
        return x
    height, width = x.shape[-2:] if x.dim() > 2 else (1, x.shape[1])
    return x.view(len(x), -1, height, width)


def numbers(channels: int, norm: str) -> int:
    """Draws of one query: a corner and the signs; under l2 and l1 a second corner and a flip before the signs."""
    return channels + (2 if norm == "linf" else 5)


def patterns(height: int, width: int, norm: str, like: Tensor) -> Tensor:
    """The pattern of windows of this size, upright and lying, [2, height, width]."""
    upright = pattern(height, width, norm)
    return torch.stack([upright, upright.t() if height == width else upright]).to(like)


def stripes(x: Tensor, eps: Tensor, index: Tensor, key: int, bounds: tuple[float, float]) -> Tensor:
    """Images moved by +-eps column by column and channel by channel: the start under linf."""
    draws = uniform(index, (x.shape[1], 1, x.shape[3]), seed=key)
    return (x + _signs(draws, x.dtype) * eps.reshape(-1, 1, 1, 1)).clamp(*bounds)


def grid(x: Tensor, eps: Tensor, index: Tensor, key: int, norm: str, bounds: tuple[float, float]) -> Tensor:
    """Images moved by five by five patterns, each with its own sign in each channel: the start under l2 and l1."""
    _, channels, height, width = x.shape
    tall = max(height // 5, 1)
    wide = min(tall, width) if height > 1 else max(width // 5, 1)
    (rows, down, count_down), (columns, across, count_across) = (
        _tiles(size, tile, x.device) for size, tile in ((height, tall), (width, wide))
    )
    draws = uniform(index, (channels + 1, count_down, count_across), seed=key)
    draws = draws[:, :, down.clamp(0, count_down - 1)][..., across.clamp(0, count_across - 1)]
    upright, lying = patterns(tall, wide, norm, x)[:, rows][..., columns]
    inside = ((down >= 0) & (down < count_down))[:, None] & ((across >= 0) & (across < count_across))
    delta = torch.where(draws[:, :1] > 0.5, lying, upright) * _signs(draws[:, 1:], x.dtype) * inside
    if norm == "l1":
        return l1_projection(x + delta, x, eps=eps * _INSIDE, bounds=bounds)
    return _scaled(x, delta, eps, bounds)


def recolour(
    x: Tensor,
    eps: Tensor,
    draws: Tensor,
    *,
    height: int,
    width: int,
    bounds: tuple[float, float],
) -> Move:
    """The linf move: a window to +eps or -eps, channel by channel. `draws` [B, queries, numbers]."""
    radius = eps.reshape(-1, 1, 1, 1)
    lo, hi = (x - radius).clamp_(min=bounds[0]), (x + radius).clamp_(max=bounds[1])
    rows, columns = (
        _inside(_corner(draws[..., at], size, side), side, size).to(x.dtype)
        for at, (size, side) in enumerate([(x.shape[2], height), (x.shape[3], width)])
    )
    # From anywhere in the ball 2 eps lead to its surface. A row of the window times a column of it is 2 eps inside.
    steps = _signs(draws[..., 2:], x.dtype) * (2 * eps)[:, None, None]

    def move(query: int, images: Tensor, out: Tensor) -> None:
        down = steps[:, query, :, None, None] * rows[:, query, None, :, None]
        torch.addcmul(images, down, columns[:, query, None, None, :], out=out)
        torch.clamp(out, lo, hi, out=out)

    return move


def remodel(
    x: Tensor,
    eps: Tensor,
    draws: Tensor,
    shapes: Tensor,
    *,
    norm: str,
    bounds: tuple[float, float],
) -> Move:
    """The l2 and l1 move: a new pattern mixed into one window, on the budget of that and of a second one.

    Args:
        draws: [B, queries, numbers].
        shapes: from `patterns`, of the windows' size.
    """
    batch, channels, *sizes = x.shape
    sides = shapes.shape[1:]
    corners = [_corner(draws[..., at], sizes[at % 2], sides[at % 2]) for at in range(4)]
    signs = _signs(draws[..., 5:], x.dtype)
    flips = (draws[..., 4] > 0.5).long()
    sample = torch.arange(batch, device=x.device)[:, None, None]
    along = [torch.arange(side, device=x.device) for side in sides]
    squared = norm == "l2"
    budget, zero = (eps * eps if squared else eps)[:, None], x.new_zeros(())

    def amount(values: Tensor) -> Tensor:
        """Of a window [B, height, width, C] in each channel [B, C]: the squared l2 norm, or the l1 norm."""
        return (values * values if squared else values.abs()).sum(2).sum(1)

    def move(query: int, images: Tensor, out: Tensor) -> None:
        top, left, top2, left2 = (corner[:, query, None] for corner in corners)
        rows, columns = (top + along[0])[:, :, None], (left + along[1])[:, None, :]
        rows2, columns2 = (top2 + along[0])[:, :, None], (left2 + along[1])[:, None, :]
        apart = (rows2 < top[:, :, None]) | (rows2 >= top[:, :, None] + sides[0])
        apart = apart | (columns2 < left[:, :, None]) | (columns2 >= left[:, :, None] + sides[1])
        delta = torch.sub(images, x, out=out)
        held = delta[sample, :, rows, columns]
        second = delta[sample, :, rows2, columns2] * apart[..., None]
        there = amount(held)
        left_over = (budget - _total(delta, squared)[:, None]).clamp_(min=0)
        # l2 adds squares, channel by channel; l1 multiplies what a channel gets by their number, as the code does.
        share = left_over / channels + there + amount(second)
        size = share.sqrt() if squared else share * channels
        new = shapes[flips[:, query]][..., None] * signs[:, query, None, None, :]
        new = new + held / (_TINY + (there.sqrt() if squared else there))[:, None, None, :]
        norm_of_new = amount(new).sqrt() if squared else amount(new)
        delta[sample, :, rows2, columns2] = zero
        delta[sample, :, rows, columns] = new * (size / (_TINY + norm_of_new))[:, None, None, :]
        if squared:
            _scaled(x, delta, eps, bounds, out=out)
        else:
            l1_projection(delta.add_(x), x, eps=eps * _INSIDE, bounds=bounds, out=out)

    return move


def _signs(draws: Tensor, dtype: torch.dtype) -> Tensor:
    return (draws < 0.5).to(dtype).mul_(-2).add_(1)


def _corner(draws: Tensor, size: int, side: int) -> Tensor:
    """Where a window begins, int64: below size - side, which the codes leave out; 0 where that is all there is."""
    return (draws * (size - side)).long()


def _inside(corner: Tensor, side: int, size: int) -> Tensor:
    """Which of `size` places a window covers that begins at `corner`: bool [..., size]."""
    at = torch.arange(size, device=corner.device)
    return (at >= corner[..., None]) & (at < corner[..., None] + side)


def _tiles(size: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Each place's position in its tile, its tile's number (beyond the last: none), and how many tiles there are.

    Five in the middle; where rounding down left room for more, as many as fit, with the margin of five before them.
    """
    at = torch.arange(size, device=device) - max((size - 5 * tile) // 2, 0)
    return at % tile, torch.div(at, tile, rounding_mode="floor"), size // tile


def _total(delta: Tensor, squared: bool) -> Tensor:
    """The squared l2 norm, or the l1 norm, of each image [B]; summed in one order whatever the batch."""
    return (delta * delta if squared else delta.abs()).sum(3).sum(2).sum(1)


def _scaled(
    x: Tensor, delta: Tensor, eps: Tensor, bounds: tuple[float, float], out: Tensor | None = None
) -> Tensor:
    """x plus `delta` stretched to length eps, clipped to bounds."""
    factor = eps / (_total(delta, squared=True).sqrt() + _TINY)
    moved = torch.addcmul(x, delta, factor.reshape(-1, 1, 1, 1), out=out)
    return torch.clamp(moved, *bounds, out=moved)
