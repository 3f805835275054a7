"""What a run writes down: means over an epoch, metrics.jsonl without doubled or lost lines, TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError

__all__ = ["TIMINGS", "Board", "Meter", "MetricsFile"]

TIMINGS = frozenset({"seconds", "images_per_second", "check_seconds"})
"""Keys of a metrics line that differ between two runs of the same configuration."""


class Meter:
    """Means of scalars over an epoch, weighted by images; summed in float64 on their device, without synchronising."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Count a batch of `images` images whose mean terms are these detached scalars."""
        self.images += images
        for name, value in terms.items():
            weighted = value.double() * images
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.images for name, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.images = state["images"]
        self.seconds = state["seconds"]
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}


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


class Board:
    """TensorBoard scalars, one point an epoch.

    Args:
        folder: where the event files go; None writes none.
        finished: epochs already behind this run; points of later ones, written before a kill, are taken back.
    """

    def __init__(self, folder: Path | None, finished: int) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=finished + 1)

    def write(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics line; nested ones under ``outer/inner``."""
        if self._writer is None:
            return
        for name, value in record.items():
            entries = (
                {f"{name}/{key}": entry for key, entry in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            for tag, number in entries.items():
                self._writer.add_scalar(tag, number, epoch)
        self._writer.flush()

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
