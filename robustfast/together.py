"""Mistakes of one process among several: all of them end, and one says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from robustfast.distributed import World
from robustfast.errors import SaidElsewhereError, UserError

__all__ = ["together"]

T = TypeVar("T")


def together(world: World, job: Callable[[], T]) -> T:
    """Do a job in every process; where any of them raises a `UserError`, all do.

    Args:
        world: the processes, all of which call this at the same point.
        job: talks to no other process, or lets all of them fail alike, as by a `together` of its own.

    Raises:
        UserError: that of the lowest rank that has one, in that process.
        SaidElsewhereError: the same message, in the others.
    """
    if world.size == 1:
        return job()
    result, complaint = None, None
    try:
        result = job()
    except UserError as error:
        complaint = str(error)
    complaints = world.gather(complaint)
    for rank, text in enumerate(complaints):
        if text is not None:
            raise UserError(text) if rank == world.rank else SaidElsewhereError(text)
    return result  # type: ignore[return-value]  # the job's, or a complaint was raised
