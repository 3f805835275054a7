"""Time rivals side by side: warmed up, interleaved, medians, on a clock that other processes do not move."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "Timing",
    "clock",
    "copy_bandwidth",
    "forward_flops",
    "full_float32",
    "graphed_seconds",
    "interleaved",
    "matrix_peak",
    "not_folded",
]

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
    rivals: dict[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: int = 5,
    sample: float = SAMPLE_SECONDS,
) -> dict[str, Timing]:
    """Time every rival, in turn forwards and backwards (A B B A ...), for about `seconds`, `rounds` times or more.

    A rival that takes less than `sample` seconds is called as often within one reading of the clock as fills them.
    """
    calls = {}
    for name, call in rivals.items():
        call()
        once = max(_sample(call, 1), 1e-7)
        calls[name] = max(1, round(sample / once))
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


@contextmanager
def full_float32() -> Iterator[None]:
    """float32 convolutions without TF32 inside the block, which cuDNN takes unasked: what others are held against."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def matrix_peak(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations per second of a large matrix product: the roof for convolutions in the same type.

    Of random numbers: products of zeros draw less power, and a GPU then runs faster than with anything real. float32 is
    as torch is set, which on a GPU means TF32 or not.
    """
    n = 8192 if device.type == "cuda" else 768
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(n, n, device=device, dtype=dtype)
    found = interleaved({"product": lambda: torch.mm(a, b, out=out)}, seconds=0.5, sample=0.02)
    return 2 * n**3 / found["product"].median


def graphed_seconds(call: Callable[[], object], *, calls: int = 100) -> float | None:
    """Seconds of one of `calls` calls in a single CUDA graph, which leaves out what the host takes to launch them.

    Args:
        call: works on CUDA tensors that outlive it, and waits for nothing.

    Returns:
        None without a GPU.

    Raises:
        CaptureError: a graph cannot hold the call.
    """
    if not torch.cuda.is_available():
        return None
    from robustfast.attacks.cuda_graph import on_stream, record

    stream = torch.cuda.Stream()
    with on_stream(stream):
        # Kernels are loaded, compiled and tuned now: under a capture none of it can be.
        for _ in range(3):
            call()

    def run() -> None:
        for _ in range(calls):
            call()

    graph, _ = record(run, stream)
    return interleaved({"graph": graph.replay}, seconds=0.2)["graph"].median / calls


def forward_flops(module: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations (two for a multiplication with its addition) of the convolutions and matrix products
    in one forward pass over float32 images of `shape`; nothing is computed.

    The module is left as it is: a copy without data is run, in eval mode.
    """
    twin = copy.deepcopy(module).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        twin(torch.empty(tuple(shape), device="meta"))
    return counter.get_total_flops()


def not_folded(model: nn.Module, half: bool) -> str | None:
    """Why attacks under `folding("on")` run no part of some encoder as a plan, or a plan was found wrong; else None.

    Args:
        model: what is attacked.
        half: under bfloat16 autocast.
    """
    from robustfast.attacks.folding import fold_report

    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=half):
        parts = fold_report(model)
    reasons: dict[str, list[str | None]] = {}
    for part in parts:
        reasons.setdefault(part.name.partition(".")[0], []).append(part.reason)
    for name, found in reasons.items():
        wrong = [reason for reason in found if reason and "other results" in reason]
        if wrong or all(found):
            return f"{name} is not folded: {(wrong or found)[0]}"
    return None
