"""A second CUDA stream for work that does not wait for its neighbour, inside graphs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Branch", "branch", "captured", "two_streams", "two_streams_wanted"]

Result = TypeVar("Result", bound=Tensor)

_wanted = True
_captures = 0
_streams: dict[torch.device, torch.cuda.Stream] = {}


@contextmanager
def two_streams(wanted: bool) -> Iterator[None]:
    """Let graphs that are captured inside the block run independent encoders side by side, or one after the other."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def two_streams_wanted() -> bool:
    """What the innermost `two_streams` says; True outside all of them."""
    return _wanted


@contextmanager
def captured() -> Iterator[None]:
    """The block is recorded as a CUDA graph, or is one of the runs that make it ready for that.

    Launched one by one, kernels of small networks leave the host no time to feed two streams, and tensors that cross
    from one to the other cost events and memory. In a graph both are settled once.
    """
    global _captures
    _captures += 1
    try:
        yield
    finally:
        _captures -= 1


class Branch:
    """A second stream that forks off the current one, its trunk, when the branch is made, and joins it on `join`.

    What `run` does there starts after all that the trunk held at the fork, and runs beside what the trunk gets until
    the join. Autograd runs each backward on the stream of its forward, so the backward forks and joins alike.

    Tensors are freed by the host, before the device is done with them, for their own stream to use again: those that
    cross between the streams are made known to the allocator. A module whose weights, casts of weights and activations
    belong to the branch alone must always run on it, also where nothing runs beside.

    Args:
        device: both streams are of this GPU; it has one stream for all branches, since cuBLAS keeps a workspace for
            each stream that it has seen.
    """

    def __init__(self, device: torch.device) -> None:
        self.trunk = torch.cuda.current_stream(device)
        # Torch hands out 32 streams in turn: one that was made for a graph since may be this one again.
        while _streams.get(device, self.trunk) == self.trunk:
            _streams[device] = torch.cuda.Stream(device)
        self.stream = _streams[device]
        self.stream.wait_stream(self.trunk)

    def run(self, call: Callable[[Tensor], Result], x: Tensor) -> Result:
        """`call(x)` on the branch; the trunk may use what it returns after `join`."""
        with torch.cuda.stream(self.stream):
            result = call(x)
        x.record_stream(self.stream)
        result.record_stream(self.trunk)
        return result

    def join(self) -> None:
        """Let the trunk wait for the branch."""
        self.trunk.wait_stream(self.stream)


def branch(device: torch.device) -> Branch | None:
    """A new branch off the current stream where a graph is captured and two streams are wanted, else None."""
    return Branch(device) if _captures and _wanted and device.type == "cuda" else None
