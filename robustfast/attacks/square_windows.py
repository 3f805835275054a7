"""The windows of the Square attack: how large at which query, and the pattern it adds inside one."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Piece", "pattern", "pieces", "share", "window"]

# Queries of 10,000 after which the share of the image that a window covers halves (appendix B of the paper).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Many samples fall to the first queries, few to each later one: look often for who is left, then seldom.
_OFTEN, _EARLY, _SELDOM = 5, 50, 25


@dataclass(frozen=True)
class Piece:
    """Queries with windows of one size, between two looks at who is left.

    Attributes:
        first: number of its first query, from 0.
        count: queries.
        height, width: of their windows, in pixels.
    """

    first: int
    count: int
    height: int
    width: int


def share(query: int, queries: int, p_init: float, *, rescale: bool) -> float:
    """p: the share of the image that the window of a query covers; `rescale` fits the schedule to `queries`."""
    at = int(query / queries * 10_000) if rescale else query
    return p_init / 2 ** bisect_left(_HALVED_AFTER, at)


def window(p: float, height: int, width: int, norm: str) -> tuple[int, int]:
    """Height and width of a window over the share `p` of an image of `height` x `width`.

    A square of side round(sqrt(p h w)), at least 1 under linf, odd and at least 3 under l2 and l1, at most the
    image's shorter side. In one row of features, p w of them.
    """
    area = p * height * width
    side = round(area if height == 1 else math.sqrt(area))
    if norm == "linf":
        side = max(side, 1)
    else:
        side = max(side, 3) // 2 * 2 + 1
    if height == 1:
        return 1, min(side, width)
    side = min(side, height, width)
    return side, side


def pieces(
    queries: int, p_init: float, height: int, width: int, norm: str, *, rescale: bool
) -> Iterator[Piece]:
    """All queries in order. A function of the settings and the image's size alone, as the draws are keyed by piece."""
    first = 0
    while first < queries:
        size = window(share(first, queries, p_init, rescale=rescale), height, width, norm)
        last = min(first + (_OFTEN if first < _EARLY else _SELDOM), queries)
        end = first + 1
        while end < last and size == window(
            share(end, queries, p_init, rescale=rescale), height, width, norm
        ):
            end += 1
        yield Piece(first, end - first, *size)
        first = end


def pattern(height: int, width: int, norm: str) -> Tensor:
    """What an l2 or l1 window adds, of norm 1: a bump in one half, its negative in the other; float64 [height, width].

    Halves lie one above the other, side by side where there is one row.
    """
    if height == 1 < width:
        return pattern(width, 1, norm).t()
    upper = height // 2
    both = torch.cat([_bump(upper, width, norm), -_bump(height - upper, width, norm)])
    return both / _length(both, norm)


def _bump(height: int, width: int, norm: str) -> Tensor:
    """Nested rectangles, the k-th adding 1/k^2 (l2) or 1/k^4 (l1), of norm 1."""
    bump = torch.zeros(height, width, dtype=torch.float64)
    if not bump.numel():
        return bump
    top, left = height // 2, width // 2
    for k in range(max(top, left) + 1):
        rows = slice(max(top - k, 0), min(top + k + 1, height))
        columns = slice(max(left - k, 0), min(left + k + 1, width))
        bump[rows, columns] += (k + 1) ** (-2.0 if norm == "l2" else -4.0)
    return bump / _length(bump, norm)


def _length(pattern: Tensor, norm: str) -> Tensor:
    return pattern.norm() if norm == "l2" else pattern.abs().sum()
