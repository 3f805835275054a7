"""Checkpoints that no kill, crash or full disk can spoil: written beside the old one, made durable, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from robustfast.errors import UserError
from robustfast.models.stored_state import load

__all__ = ["FORMAT", "PREVIOUS", "load", "load_newest", "present", "save", "write_durably"]

FORMAT = 2
"""Version of the checkpoints' layout. 1 held the state of torch's generators, which 2 seeds for each step instead."""

PREVIOUS = "previous.pt"
"""Name of the checkpoint before ``last.pt``."""


def save(state: dict[str, Any], path: Path, *, keep_previous: bool = False) -> None:
    """Write `state` so that at every moment `path` or, with `keep_previous`, ``previous.pt`` beside it is whole.

    Args:
        state: tensors, numbers, text and containers of them, nothing that would need code to load.
        path: the checkpoint.
        keep_previous: rename what is there to ``previous.pt`` instead of replacing it. Not for a broken one: it would
            take the place of the whole one that a crash a moment later leaves nothing else than.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old checkpoint is untouched.
    """

    def retire() -> None:
        if keep_previous and path.exists():
            os.replace(path, path.with_name(PREVIOUS))

    write_durably(path, lambda file: torch.save(state, file), before_rename=retire)


def write_durably(
    path: Path, write: Callable[[BinaryIO], None], *, before_rename: Callable[[], None] = lambda: None
) -> None:
    """Write a file whole or not at all, and have it on the disk before returning.

    A power cut after `os.replace` may otherwise leave a name that points to unwritten blocks.

    Args:
        path: the file.
        write: writes its content to the open file.
        before_rename: runs once the new content is on the disk and before it takes its name.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    # One name per file, not one per process: what a killed run left behind is overwritten by the next one.
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        before_rename()
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {_reason(error)}; what was there before is untouched: make room or rights, then try "
            f"again"
        ) from error


def load_newest(
    folder: Path, device: torch.device | str = "cpu", *, say: Callable[[str], None] = print
) -> tuple[dict[str, Any], Path] | None:
    """The newest whole checkpoint of a folder and its path: ``last.pt``, else ``previous.pt``, else None.

    Args:
        folder: the run's ``checkpoints`` folder.
        device: where the tensors go.
        say: told when the newest one is broken and the older one is used.

    Raises:
        UserError: there are checkpoints, and all are broken.
    """
    failures: list[UserError] = []
    for path in present(folder):
        try:
            state = load(path, device)
        except UserError as error:
            failures.append(error)
            continue
        for failure in failures:
            say(f"{failure}; using the one before it, {path}")
        return state, path
    if failures:
        raise UserError("; ".join(map(str, failures)))
    return None


def present(folder: Path) -> list[Path]:
    """The checkpoints of a folder that a run goes on from, the newest first, whole or not."""
    return [path for name in ("last.pt", PREVIOUS) if (path := folder / name).exists()]


def _reason(error: BaseException) -> str | None:
    """What the system said. torch.save tells of a full disk as a RuntimeError of its zip writer, raised on the way."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return str(error).splitlines()[0] if cause is None else cause.strerror


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open folders, and renames there are durable by themselves."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
