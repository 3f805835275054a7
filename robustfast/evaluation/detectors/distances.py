"""Distances between many vectors, tile by tile: no matrix of all pairs ever exists.

Float32 features become float64 a tile at a time, shifted to near the origin, and squared distances come from products
there, ``|a|^2 + |b|^2 - 2 ab``. In float32 the same products lose digits which a kernel of bandwidth h multiplies by
``1 / (2 h^2)``; bench/detectors.py measures both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["log_kernel_sums", "nearest", "tile_size"]

BYTES = 8  # of a float64
TILES = 4  # distances, and what a log-sum-exp or a selection makes of them
CENTRE = 1000  # rows whose mean is the origin; any point near the data does


def tile_size(features: int, chunk_bytes: int) -> int:
    """Rows and columns t of a tile: ``TILES`` squares of t x t and two blocks of t x features fit in `chunk_bytes`."""
    half = features / TILES
    return max(1, int(math.sqrt(half * half + chunk_bytes / (BYTES * TILES)) - half))


def _squares(
    queries: Tensor, samples: Tensor, chunk_bytes: int
) -> Iterator[tuple[slice, Iterator[tuple[slice, Tensor]]]]:
    """For each slice of queries, for each slice of samples: squared distances, float64 [rows, columns].

    Those of equal vectors are 0 to rounding, on either side of it.
    """
    size = tile_size(samples.shape[1], chunk_bytes)
    origin = samples[:CENTRE].double().mean(0)

    def against(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        own = rows.square().sum(1, keepdim=True)
        for start in range(0, len(samples), size):
            columns = samples[start : start + size].double() - origin
            tile = torch.addmm(columns.square().sum(1), rows, columns.T, alpha=-2)
            yield slice(start, start + len(columns)), tile.add_(own)

    for start in range(0, len(queries), size):
        rows = queries[start : start + size].double() - origin
        yield slice(start, start + len(rows)), against(rows)


def log_kernel_sums(
    queries: Tensor, samples: Tensor, bandwidths: Sequence[float], *, chunk_bytes: int
) -> Tensor:
    """``log sum_i exp(-|q - s_i|^2 / (2 h^2))`` of each query, for each bandwidth h: float64 [len(bandwidths), N].

    Args:
        queries: [N, H].
        samples: [M, H], at least one.
        bandwidths: above 0.
        chunk_bytes: what tiles may take.
    """
    sums = torch.full((len(bandwidths), len(queries)), -torch.inf, dtype=torch.float64, device=queries.device)
    for rows, tiles in _squares(queries, samples, chunk_bytes):
        for _, tile in tiles:
            for row, bandwidth in zip(sums, bandwidths, strict=True):
                part = (tile * (-0.5 / bandwidth**2)).logsumexp(1)
                row[rows] = torch.logaddexp(row[rows], part)
    return sums


def nearest(queries: Tensor, samples: Tensor, count: int, *, chunk_bytes: int) -> Tensor:
    """Distances of each query to the `count` samples next to it, ascending: float64 [N, count].

    The samples are chosen by tiles of products, the distances to them taken from differences: those of a query to
    itself are 0 exactly.

    Args:
        queries: [N, H].
        samples: [M, H], M >= count.
        count: 1 or more.
        chunk_bytes: what tiles may take, and the differences after them.
    """
    found = torch.empty(len(queries), count, dtype=torch.float64, device=queries.device)
    block = max(1, chunk_bytes // (3 * BYTES * count * samples.shape[1]))
    for rows, tiles in _squares(queries, samples, chunk_bytes):
        best = torch.empty(rows.stop - rows.start, 0, dtype=torch.float64, device=queries.device)
        where = best.long()
        for columns, tile in tiles:
            near = tile.topk(min(count, tile.shape[1]), largest=False, sorted=False)
            best = torch.cat([best, near.values], 1)
            where = torch.cat([where, near.indices + columns.start], 1)
            if best.shape[1] > count:
                kept = best.topk(count, largest=False, sorted=False)
                best, where = kept.values, where.gather(1, kept.indices)
        for start in range(0, len(where), block):
            own = slice(rows.start + start, rows.start + start + len(where[start : start + block]))
            apart = samples[where[start : start + block]].double() - queries[own, None].double()
            found[own] = apart.square_().sum(2).sqrt_().sort(1).values
    return found
