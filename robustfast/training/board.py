"""TensorBoard events of a run, written where they are asked for: an error of the disk surfaces there, in one line."""

from __future__ import annotations

import io
import itertools
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robustfast.errors import UserError

__all__ = ["Board"]

_NUMBERS = itertools.count()


class Board:
    """Scalars and images, one point an epoch.

    tensorboard's own writer works in a thread, which a full disk ends with a trace, and whose forked copies never run.

    Args:
        folder: where the event file goes; None writes none.
        finished: epochs already behind this run; points of later ones, written before a kill, are taken back.

    Raises:
        UserError: the disk is full or the folder cannot be written; so do `scalars` and `images`.
    """

    def __init__(self, folder: Path | None, finished: int) -> None:
        self._path: Path | None = None
        if folder is None:
            return
        # TensorBoard reads a folder's files in the order of their names: the newest has to come last.
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        self._path = folder / name
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        # START of a session: what has this step or a later one in older files counts no more.
        start = {"status": 1}
        self._append([{"file_version": "brain.Event:2"}, {"step": finished + 1, "session_log": start}])

    def scalars(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Write the numbers of a metrics line; nested ones under ``outer/inner``."""
        points = []
        for name, value in record.items():
            nested = isinstance(value, dict)
            entries = {f"{name}/{key}": entry for key, entry in value.items()} if nested else {name: value}
            points += [{"tag": tag, "simple_value": float(number)} for tag, number in entries.items()]
        self._append([{"step": epoch, "summary": {"value": [point]}} for point in points])

    def images(self, epoch: int, pictures: Mapping[str, Tensor]) -> None:
        """Write a grid of images under each tag: float [B, C, H, W] in [0, 1], four in a row."""
        if self._path is None:
            return
        # Here, since it brings matplotlib along.
        from torch.utils.tensorboard import summary

        from robustfast.visualization.image_grid import image_grid

        self._append(
            [
                {"step": epoch, "summary": summary.image(tag, image_grid(x, 4), dataformats="CHW")}
                for tag, x in pictures.items()
            ]
        )

    def _append(self, events: list[dict[str, Any]]) -> None:
        if self._path is None or not events:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        buffer = io.BytesIO()
        records = RecordWriter(buffer)
        for event in events:
            records.write(Event(wall_time=time.time(), **event).SerializeToString())
        try:
            with self._path.open("ab") as file:
                file.write(buffer.getvalue())
        except OSError as error:
            raise _unwritable(self._path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; make room or rights, then --resume")
