"""Leave out samples that are already won, between blocks of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Remaining", "remaining"]

# A graph is captured per size of batch. Five sizes waste at most half of the smallest one that fits.
_SIZES = (1.0, 0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True)
class Remaining:
    """The samples of a batch that are still attacked.

    Attributes:
        rows: int64 [n] their positions in the batch; where sizes are static, the last one repeats as padding.
        count: how many of `rows` are no padding.
    """

    rows: Tensor
    count: int

    def take(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of every tensor [B, ...] of `state`, in the memory format they have; copies."""
        return {
            name: value.index_select(0, self.rows) if value.dim() < 4 else _select(value, self.rows)
            for name, value in state.items()
        }

    def put(self, state: Mapping[str, Tensor], part: Mapping[str, Tensor], names: Iterable[str] = ()) -> None:
        """Write `part`, which `take` gave, back into `state`: the tensors called `names`, or all of `part`."""
        rows = self.rows[: self.count]
        for name in names or part:
            state[name].index_copy_(0, rows, part[name][: self.count])


def remaining(done: Tensor, *, static: bool) -> Remaining:
    """The samples that `done` bool [B] does not name. Waits for the device: call it between blocks of steps.

    Args:
        done: samples to leave out.
        static: take one of a few batch sizes, as CUDA graphs need, by repeating the last sample.
    """
    rows = torch.nonzero(~done).squeeze(1)
    count = len(rows)
    if static and count > 0:
        size = min(size for share in _SIZES if (size := -(-len(done) * share // 1)) >= count)
        rows = torch.cat([rows, rows[-1:].expand(int(size) - count)])
    return Remaining(rows, count)


def _select(images: Tensor, rows: Tensor) -> Tensor:
    # index_select makes contiguous memory of channels-last images.
    if images.is_contiguous() or not images.movedim(1, -1).is_contiguous():
        return images.index_select(0, rows)
    return images.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
