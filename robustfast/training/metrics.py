"""What a run writes down: means over an epoch, metrics.jsonl without doubled or lost lines."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.training.terms import Terms

__all__ = ["TIMINGS", "Meter", "MetricsFile"]

TIMINGS = frozenset({"seconds", "images_per_second", "check_seconds"})
"""Keys of a metrics line that differ between two runs of the same configuration."""


class Meter:
    """Means of scalars over an epoch, weighted by images; summed in float64 on their device, without synchronising.

    Attributes:
        images: images counted so far, by this process.
        seconds: time they took; whoever counts them sets it.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._sums: Terms | None = None  # float64, never written in place

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Count a batch of `images` images whose mean terms are these detached scalars; `Terms` in one launch."""
        terms = Terms.of(terms)
        sums = self._sums
        if sums is None:
            sums = Terms(terms.names, torch.zeros_like(terms.stacked, dtype=torch.float64))
        elif sums.names != terms.names:
            names = tuple(dict.fromkeys((*sums.names, *terms.names)))
            sums, terms = sums.in_order(names), terms.in_order(names)
        self._sums = Terms(sums.names, sums.stacked.add(terms.stacked, alpha=images))
        self.images += images

    def copy(self) -> Meter:
        """What was counted so far, whatever this one counts next."""
        return copy.copy(self)

    def over(self, world: World) -> Meter:
        """What all processes counted, in every one of them; each has counted the same terms."""
        total = Meter()
        total.seconds = self.seconds
        if self._sums is None:
            return total
        mine = self._sums.stacked
        counts = world.sum(torch.cat([mine, mine.new_full((1,), self.images)]))
        total.images = int(counts[-1])
        total._sums = Terms(self._sums.names, counts[:-1])
        return total

    def means(self) -> dict[str, float]:
        if self._sums is None:
            return {}
        sums = zip(self._sums.names, self._sums.stacked.tolist(), strict=True)
        return {name: value / self.images for name, value in sums}

    def state_dict(self) -> dict[str, Any]:
        sums: dict[str, Tensor] = {}
        if self._sums is not None:
            # Each a tensor of its own: as views all would be stored with all.
            values = (value.clone() for value in self._sums.stacked.cpu().unbind())
            sums = dict(zip(self._sums.names, values, strict=True))
        return {"images": self.images, "seconds": self.seconds, "sums": sums}

    @staticmethod
    def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The state of one meter that has counted what those of `states` did, of the same terms."""
        sums = {name: torch.stack([s["sums"][name] for s in states]).sum(0) for name in states[0]["sums"]}
        return {
            "images": sum(state["images"] for state in states),
            "seconds": max(state["seconds"] for state in states),
            "sums": sums,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device, *, mine: bool = True) -> None:
        """The inverse of `state_dict`; not `mine`, it sets every sum to zero, since another process counts it."""
        self.images = state["images"] * mine
        self.seconds = state["seconds"]
        self._sums = None
        if sums := state["sums"]:
            self._sums = Terms(tuple(sums), torch.stack(list(sums.values())).to(device) * mine)


class MetricsFile:
    """metrics.jsonl, one line an epoch, on the disk before the checkpoint that counts its bytes.

    Killed between line and checkpoint, a run has written a line too many: `rewind` to the bytes that the checkpoint
    counted drops it, and the epoch is computed again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on the disk.

        Raises:
            UserError: the disk is full or the file cannot be written.
        """
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                self.bytes = file.tell()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; make room or rights, then --resume"
            ) from error

    def rewind(self, size: int) -> None:
        """Drop everything behind the first `size` bytes.

        Raises:
            UserError: the file has fewer bytes, or cannot be written.
        """
        try:
            found = self.path.stat().st_size if self.path.exists() else 0
            if found < size:
                raise UserError(
                    f"{self.path} has {found} bytes, the checkpoint counts {size}: lines were lost; "
                    f"put the file back from a copy, or start a new run"
                )
            if found > size:
                os.truncate(self.path, size)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error
        self.bytes = size
