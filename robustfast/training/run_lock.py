"""One process at a time trains into a run folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from robustfast.errors import UserError

__all__ = ["FILE", "run_lock"]

FILE = "lock"
"""In the run folder; empty, and left there: whether a process holds it is known to the system alone."""


@contextmanager
def run_lock(folder: Path, *, say: Callable[[str], object] = print) -> Iterator[None]:
    """Hold a run folder for this process until the block, or the process, ends; a kill frees it too.

    A record lock, unlike flock's, is not inherited: the workers of a DataLoader, which outlive a killed parent by
    seconds, would keep the restarted run out.

    Args:
        folder: the run.
        say: told where the file system knows no locks.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    path = folder / FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room or rights, then try again"
        ) from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"another process is training into {folder} (fuser {path} names it): wait for its end or stop it, "
                    f"or train into another folder"
                ) from error
            say(f"{folder} cannot be locked ({error.strerror}): see to it that nothing else trains into it")
        yield
    finally:
        os.close(descriptor)
