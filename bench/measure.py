"""Time rivals side by side: warmed up, interleaved, medians, on a clock that other processes do not move."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

__all__ = ["Timing", "clock", "copy_bandwidth", "interleaved"]

# A sample shorter than this is repeated within one reading of the clock.
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and quartiles of `rounds` samples of `calls` calls each."""

    median: float
    lower: float
    upper: float
    rounds: int
    calls: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def clock() -> float:
    """Seconds: wall time with an idle device on a GPU, else this process's CPU time, which others move less."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _sample(call: Callable[[], object], calls: int) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


def interleaved(
    rivals: dict[str, Callable[[], object]], *, seconds: float, rounds: int = 5
) -> dict[str, Timing]:
    """Time every rival, in turn forwards and backwards (A B B A ...), for about `seconds`, `rounds` times or more."""
    calls = {}
    for name, call in rivals.items():
        call()
        once = max(_sample(call, 1), 1e-7)
        calls[name] = max(1, round(SAMPLE_SECONDS / once))
        rounds = max(rounds, min(200, round(seconds / (once * calls[name]) / len(rivals))))
    samples: dict[str, list[float]] = {name: [] for name in rivals}
    for i in range(rounds):
        for name in list(rivals)[:: -1 if i % 2 else 1]:
            samples[name].append(_sample(rivals[name], calls[name]))
    return {name: _timing(values, calls[name]) for name, values in samples.items()}


def _timing(values: list[float], calls: int) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper, len(values), calls)


def copy_bandwidth(nbytes: int, device: torch.device) -> float:
    """Bytes read and written per second by a copy that moves `nbytes` in all: the roof for a kernel that moves as many.

    Measured at that size, because small tensors stay in a cache whose bandwidth is not the memory's.
    """
    source = torch.ones(max(1, nbytes // 8), device=device)
    target = torch.empty_like(source)
    return nbytes / interleaved({"copy": lambda: target.copy_(source)}, seconds=0.2)["copy"].median
