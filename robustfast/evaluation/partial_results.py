"""Pieces of a long evaluation on the disk, so that an interrupted one goes on: one small JSON file for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robustfast.errors import UserError
from robustfast.training.checkpoint import write_durably

__all__ = ["PartialResults", "data_digest", "fingerprint"]


def fingerprint(**settings: Any) -> str:
    """A short digest of plain values: what a piece was computed with, and hence its name."""
    text = json.dumps(settings, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def data_digest(*tensors: Tensor) -> str:
    """A short digest of images and labels."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:20]


class PartialResults:
    """A folder of pieces, each under its fingerprint and the number of its batch.

    A piece is written whole or not at all, and counts only with the images it was computed from: another model,
    setting or image makes another name or digest, and is computed anew.

    Args:
        folder: made when the first piece is kept; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._own: set[Path] = set()

    def find(self, name: str, batch: int, data: str) -> dict[str, Any] | None:
        """The piece of a batch whose images have the digest `data`; None where there is none, or a damaged one."""
        if self.folder is None:
            return None
        path = self._path(name, batch)
        try:
            record = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            return None
        if not isinstance(record, dict) or record.pop("data", None) != data:
            return None
        self._own.add(path)
        return record

    def keep(self, name: str, batch: int, data: str, record: Mapping[str, Any]) -> None:
        """Write a piece.

        Raises:
            UserError: the folder cannot be made or written.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {self.folder}: {error.strerror}; give one that can be written with --out"
            ) from error
        path = self._path(name, batch)
        text = json.dumps({"data": data, **record}, allow_nan=False)
        write_durably(path, lambda file: file.write(text.encode()))
        self._own.add(path)

    @property
    def any_kept(self) -> bool:
        """Whether a later call would find a piece of this one."""
        return bool(self._own)

    def clear(self) -> None:
        """Remove the pieces that were found or kept, and the folder where nothing else is left in it."""
        for path in self._own:
            path.unlink(missing_ok=True)
        self._own.clear()
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, name: str, batch: int) -> Path:
        return self.folder / f"{name}.{batch}.json"  # type: ignore[operator]  # only asked where there is a folder
