"""Training processes that cost no start: each is forked from a program that has imported everything already."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def process(job: Callable[[], object], *, err: int | None = None) -> int:
    """Fork a process for `job`, which says nothing on stdout, and on stderr what `err` is open for; its id.

    It exits with what `job` returns where that is a number, else with 0, and with 1 after an exception.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if err is not None:
            os.dup2(err, 2)
        with open(os.devnull, "w") as sys.stdout:
            result = job()
        code = result if isinstance(result, int) else 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process: its exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
