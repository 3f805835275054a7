"""`pytest bench/ --benchmark` measures; `pytest bench/` only checks that the rivals agree."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from measure import copy_bandwidth, interleaved

from robustfast import __version__
from robustfast.ops import backends

HERE = Path(__file__).parent

# One thread: two under load made a 0.1 ms op take 16 ms.
torch.set_num_threads(int(os.environ.get("ROBUSTFAST_BENCH_THREADS", "1")))

# By default glibc gives large blocks back to the kernel at once, and every eager temporary pays for its pages again.
# With # these set pages stay, as they do under a CUDA allocator; a ratio means little without saying which it was.
RESIDENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
ALLOCATOR = "pages stay resident" if all(os.environ.get(k) == v for k, v in RESIDENT.items()) else "default"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="measure, not only check that the rivals agree")
    parser.addoption("--seconds", type=float, default=1.0, help="time for each rival of a case")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True
        return
    if not config.option.benchmark_autosave and not config.option.benchmark_save:
        config.option.benchmark_autosave = "run"
    if config.option.benchmark_storage == "file://./.benchmarks":
        config.option.benchmark_storage = f"file://{HERE / 'results'}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    for private in ("node", "release"):
        machine_info.pop(private, None)
    machine_info.update(
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        torch=torch.__version__,
        cuda=torch.version.cuda,
        robustfast=__version__,
        threads=torch.get_num_threads(),
        allocator=ALLOCATOR,
    )


@pytest.fixture
def measuring(request: pytest.FixtureRequest) -> bool:
    """Whether this run measures; without it a bench checks, on smaller batches where the sizes are large."""
    return request.config.getoption("--benchmark")


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """compare(op, case, rivals, check, nbytes=None, device=None): first all agree, then all are timed side by side.

    `rivals` maps a name to a call without arguments, ours last; `check(name, result)` asserts that the result is right.
    A rival named "compiled" is left out of runs that do not measure: compiling would take most of their time. `nbytes`
    is what one call must move at least; the share of the copy bandwidth at that size is reported with it.
    """

    def run(
        op: str,
        case: str,
        rivals: dict[str, Callable[[], Any]],
        check: Callable[[str, Any], None],
        *,
        nbytes: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        measuring = request.config.getoption("--benchmark")
        # Each case compiles functions of its own; together they would pass dynamo's limit for one function.
        torch._dynamo.reset()
        for name, call in rivals.items():
            if measuring or name != "compiled":
                check(name, call())
        ours = list(rivals)[-1]
        if not measuring:
            benchmark(rivals[ours])
            return
        timings = interleaved(rivals, seconds=request.config.getoption("--seconds"))
        info: dict[str, Any] = {"op": op, "case": case, "equal": True, "seconds": {}}
        info["seconds"] = {name: timing.as_dict() for name, timing in timings.items()}
        info["ratio"] = {name: timing.median / timings[ours].median for name, timing in timings.items()}
        if nbytes:
            roof = copy_bandwidth(nbytes, device or torch.device("cpu"))
            info.update(bytes=nbytes, copy_bandwidth=roof, share_of_copy=nbytes / timings[ours].median / roof)
        benchmark.group = f"{op}[{case}]"
        benchmark.extra_info.update(info)
        benchmark.pedantic(rivals[ours], rounds=timings[ours].rounds, iterations=timings[ours].calls)

    return run


@pytest.fixture
def fused(request: pytest.FixtureRequest) -> Callable[[str, torch.device], list[str]]:
    """fused(op, device): the fused backends that can run `op` on `device` here, the automatic choice last."""

    def names(op: str, device: torch.device) -> list[str]:
        order = {"cpu": ["cpp"], "cuda": ["triton", "cuda"]}[device.type]
        return [name for name in order if backends()[op][name] is None]

    return names


def _quantity(seconds: float) -> str:
    for unit, scale in (("s ", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b.extra_info for b in session.benchmarks if "seconds" in b.extra_info] if session else []
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("side by side")
    write(
        f"{torch.get_num_threads()} thread(s); allocator: {ALLOCATOR}; medians; xN: how many times as long as ours"
    )
    for row in rows:
        rivals = "  ".join(
            f"{name} {_quantity(timing['median'])} x{row['ratio'][name]:.2f}"
            for name, timing in row["seconds"].items()
        )
        share = f"  ({row['share_of_copy']:.0%} of copy bandwidth)" if "share_of_copy" in row else ""
        write(f"{row['op']} {row['case']}: {rivals}{share}")
