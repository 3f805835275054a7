"""SIGTERM and SIGINT: an exception where nothing is at stake, a request that is looked at between steps in training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

__all__ = ["StopRequest", "Stopped", "raised_on_sigterm", "signal_behind"]


class Stopped(KeyboardInterrupt):
    """A signal ended the work: an end and no error. What lets Ctrl-C pass lets it pass too.

    Args:
        number: the signal.
        then: what the user can do next, the end of the one line that is printed.
    """

    def __init__(self, number: int, then: str = "") -> None:
        super().__init__(*[then] if then else [])
        self.number = number


def signal_behind(stop: KeyboardInterrupt) -> int:
    """The signal's number; an exit code is 128 more."""
    return stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)


@contextmanager
def raised_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises `Stopped`, as SIGINT raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    before = _handle(signal.SIGTERM, stop)
    try:
        yield
    finally:
        _restore({signal.SIGTERM: before})


class StopRequest:
    """Context manager in which SIGTERM and SIGINT only ask: the first is remembered, a second raises `Stopped` at once.

    torchrun hands on what it receives, and batch systems signal torchrun and its processes alike: under it, where each
    process may get the same request several times, only the first one counts.

    Attributes:
        number: the signal that asked, 0 while none has.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for which in (signal.SIGTERM, signal.SIGINT):
            self._before[which] = _handle(which, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._before)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise Stopped(number)
        self.number = self.number or number


def _handle(which: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Any:
    """Install a handler and return the one before; only a process's main thread can, elsewhere None."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(which, handler)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for which, handler in handlers.items():
        # None too: a handler that was not installed from Python cannot be put back.
        if handler is not None:
            signal.signal(which, handler)
