"""Every kernel under compute-sanitizer: `python bench/sanitize.py [--tools memcheck ...] [--ops pgd_step ...]`.

Each op runs all its sample inputs, backward where it has one, on CUDA C++ and on Triton: one process for each tool and
op, so that a time limit loses one op, several at a time. Each tool first looks for a fault that is planted for it: one
that refuses the device is skipped with its own words, and of one that finds nothing it is said that its silence proves
nothing. torch's caching allocator is off, else a read past a tensor's end would still be inside the block that torch
took for it.

torch's own kernels are left out of what memcheck, racecheck and synccheck look at. initcheck sees all, because it must
know what they wrote; what it then says of theirs is counted apart. The table is written after each process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SKIPPED = 77  # the exit code of a program that could not do its work here, as automake has it
# A report that names one of these is about a kernel of torch's or its libraries'; every other report counts.
THEIRS = re.compile(r"\bat (?:void )?(?:at::|c10::|cub::|thrust::|cutlass|cublas|cudnn|\w*gemm|\w*at6native)")
# The mangled name of each of torch's kernels has this in it.
EXCLUDE = ["--kernel-name-exclude", "kernel_substring=at6native"]
SEEN = ("memcheck", "racecheck", "synccheck")
SUMMARY = re.compile(r"= (?:ERROR|RACECHECK) SUMMARY")
DONE = "every sample ran"

# One kernel for each tool, with the fault that it looks for.
PLANTED = r"""
#include <cstdio>
#include <cstring>
#include <cuda_runtime.h>
__global__ void memcheck(int* data) { data[threadIdx.x] = 1; }
__global__ void racecheck(int* data) {
  __shared__ volatile int total;
  total = threadIdx.x;
  data[threadIdx.x] = total;
}
__global__ void initcheck(int* data) { data[threadIdx.x] += 1; }
__global__ void synccheck(int* data) {
  if (threadIdx.x < 7) __syncthreads();
  data[threadIdx.x] = 1;
}
int main(int, char** argv) {
  int* data = nullptr;
  const bool past = !strcmp(argv[1], "memcheck");
  cudaError_t state = cudaMalloc(&data, (past ? 32 : 64) * sizeof(int));
  if (past) memcheck<<<1, 64>>>(data);
  if (!strcmp(argv[1], "racecheck")) racecheck<<<1, 64>>>(data);
  if (!strcmp(argv[1], "initcheck")) initcheck<<<1, 64>>>(data);
  if (!strcmp(argv[1], "synccheck")) synccheck<<<1, 64>>>(data);
  if (state == cudaSuccess) state = cudaDeviceSynchronize();
  printf("%s\n", cudaGetErrorString(state));
}
"""


@dataclass
class Run:
    """One op under one tool: "clean", "errors", "failed", "timed out" or "skipped", and why."""

    tool: str
    op: str
    state: str
    seconds: float = 0.0
    errors: int = 0
    elsewhere: int = 0
    ran: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def find_tool() -> str | None:
    """compute-sanitizer on PATH, else beside nvcc or in the usual folder."""
    found = shutil.which("compute-sanitizer")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home, "bin") for home in homes if home]
    return found or shutil.which("compute-sanitizer", path=os.pathsep.join(map(str, folders)))


def command(executable: str, tool: str, program: list[str]) -> list[str]:
    """`program` under the tool: every error shown, exit code 9 with any; child processes (compilers) left alone."""
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "10000"]
    options += ["--target-processes", "application-only", "--show-backtrace", "no"]
    if tool == "memcheck":
        # torch asks the driver for things that may fail, and looks at the answer; our launches raise on errors.
        options += ["--report-api-errors", "no"]
    return [executable, *options, *(EXCLUDE if tool in SEEN else []), *program]


def reports(text: str) -> tuple[list[str], list[str]]:
    """The tool's reports of errors in its output: those about our kernels, and those about others'."""
    ours, theirs, current = [], [], []

    def close() -> None:
        if current:
            whole = "\n".join(current)
            (theirs if THEIRS.search(whole) else ours).append(whole)
            current.clear()

    for line in text.splitlines():
        if not line.startswith("========="):
            continue
        said = line.removeprefix("=========")
        # A report begins one space in, and what belongs to it follows further in.
        if re.match(
            r" (?! |COMPUTE-SANITIZER|\w+ SUMMARY|Target application|Warning|Error: (?!Race))\S", said
        ):
            if not said.startswith(" and "):
                close()
            current.append(said.strip())
        elif current and said.strip():
            current.append(said.strip())
            if " SUMMARY" in said:
                current.pop()
                close()
    close()
    return ours, theirs


def judge(run: Run, code: int | None, text: str) -> None:
    """Fill in what became of a process from its exit code (None: past its limit) and its output."""
    ours, theirs = reports(text)
    run.elsewhere = len(theirs)
    run.ran = [line for line in text.splitlines() if line.endswith(" samples")]
    lines = [line.replace(str(ROOT), ".") for line in text.splitlines() if line.strip()]
    shown = [line for report in ours[:5] for line in report.splitlines()[:8]]
    if DONE in text:
        # Python's own end, if any, is not the tool's.
        run.errors, run.words = len(ours), shown
        if ours or (code not in (0, 9)):
            run.state = "errors" if ours else "failed"
            run.words = run.words or lines[-10:]
        elif code == 9 and not theirs:
            run.state, run.words = "errors", lines[-10:]
        elif not SUMMARY.search(text):
            run.state, run.words = "failed", ["the tool wrote no summary", *lines[-10:]]
        else:
            run.state = "clean"
    elif ours:
        # An access that the tool stopped ends the process too.
        run.errors, run.state, run.words = len(ours), "errors", shown
    else:
        run.state, run.words = ("timed out", lines[-5:]) if code is None else ("failed", lines[-15:])


class Processes:
    """Starts processes in groups of their own, and ends all that are left."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.over = False

    def run(self, argv: list[str], limit: float, environment: dict[str, str]) -> tuple[int | None, str]:
        """The exit code, None past the limit, and all that it printed."""
        with tempfile.TemporaryFile() as sink:
            with self.lock:
                if self.over:
                    return None, ""
                process = subprocess.Popen(
                    argv,
                    cwd=ROOT,
                    env=environment,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.running.add(process)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                self.end(process)
            sink.seek(0)
            return code, sink.read().decode(errors="replace")

    def end(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.running.discard(process)

    def end_all(self) -> None:
        with self.lock:
            self.over = True
        for process in list(self.running):
            self.end(process)


@dataclass
class Tool:
    """Why a tool is skipped, if it is; and why the fault planted for it is not known to be found, if it is not."""

    skipped: str | None = None
    planted: str | None = None

    def __str__(self) -> str:
        if self.skipped or self.planted:
            return (
                f"skipped, {self.skipped}" if self.skipped else f"its silence proves nothing: {self.planted}"
            )
        return "finds the fault planted for it"


def try_tools(executable: str, folder: Path, names: Iterable[str], processes: Processes) -> dict[str, Tool]:
    """Each tool on the fault planted for it: one that does not come to a summary cannot run here, and is skipped."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return {name: Tool(planted="no fault could be planted: nvcc is not on PATH") for name in names}
    source, program = folder / "planted.cu", folder / "planted"
    source.write_text(PLANTED)
    building = [nvcc, "-arch", architecture(), "-lineinfo", "-o", str(program), str(source)]
    code, text = processes.run(building, 120, dict(os.environ))
    if code != 0:
        return {name: Tool(planted=f"no fault could be planted: {last_words(text)}") for name in names}
    found = {}
    for name in names:
        code, text = processes.run(command(executable, name, [str(program), name]), 60, dict(os.environ))
        if not SUMMARY.search(text):
            found[name] = Tool(skipped=last_words(text))
        elif code == 9 and any(name in report for report in reports(text)[0]):
            found[name] = Tool()
        else:
            found[name] = Tool(planted=f"the planted fault was not found: {last_words(text)}")
    return found


def last_words(text: str) -> str:
    """What a program said of its failure: the line that names an error, else its last."""
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    telling = [line for line in lines if re.search(r"not supported|[Ee]rror|[Ff]ailed|denied", line)]
    return next(iter(telling or lines[-1:]), "it printed nothing")


def architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return f"sm_{major}{minor}"


def exercise(name: str, device_type: str) -> None:
    """Run every sample of an op on each fused backend of the device, backward too; this is what the tool watches."""
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_leaves, tree_map_only

    from robustfast.errors import UserError
    from robustfast.ops import OPS, backends, use_backend
    from robustfast.ops.backend import Sample

    device, op = torch.device(device_type), OPS[name]
    kinds = {"cuda": ("cuda", "triton"), "cpu": ("cpp",)}[device.type]

    def late(t: Tensor) -> Tensor:
        # Starts one element into its storage: no vector load of it is aligned.
        flat = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
        return flat.view(t.shape).copy_(t)

    def backward(sample: Sample, chosen: Callable[[int], bool]) -> int:
        """The op again with a gradient wanted for some arguments; how many gradients that made."""
        numbers = itertools.count()
        args = tree_map_only(
            Tensor,
            lambda t: t.detach().clone().requires_grad_(t.is_floating_point() and chosen(next(numbers))),
            sample.args,
        )
        outputs = [t for t in tree_leaves(op.function(*args, **sample.kwargs)) if isinstance(t, Tensor)]
        wanted = [t for t in outputs if t.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])
        return sum(isinstance(t, Tensor) and t.grad is not None for t in tree_leaves(args))

    for backend in kinds:
        if reason := backends()[name][backend]:
            sys.exit(f"{name} has no {backend} backend here: {reason}")
        samples, gradients = list(op.samples(device)), 0
        with use_backend(backend):
            for sample in samples:
                op.function(*sample.args, **sample.kwargs)
                op.function(*tree_map_only(Tensor, late, sample.args), **sample.kwargs)
                try:
                    gradients += backward(sample, lambda number: True)
                except UserError:
                    # An argument that takes no gradient: the first one does, where any does.
                    with contextlib.suppress(UserError):
                        gradients += backward(sample, lambda number: number == 0)
        print(f"{name} on {backend}: {gradients} gradients of {len(samples)} samples", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(DONE, flush=True)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM becomes the exception that Ctrl-C raises."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--ops", nargs="+", help="default: all")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one op under one tool")
    parser.add_argument(
        "--seconds", type=float, default=1200.0, help="seconds in all; what is left is skipped"
    )
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 1) // 2)))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "sanitize.json")
    parser.add_argument("--run", metavar="OP", help="run this op's samples and stop: what the tools watch")
    options = parser.parse_args()
    if options.run:
        exercise(options.run, options.device)
        return 0
    import torch
    from hardware import hardware

    from robustfast.ops import OPS

    names = options.ops or list(OPS)
    if unknown := sorted(set(names) - set(OPS)):
        print(f"error: --ops {' '.join(unknown)}: no such op; there are {', '.join(OPS)}", file=sys.stderr)
        return 2
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device; --device cpu tries this script without one", file=sys.stderr)
        return 2
    index = torch.cuda.current_device() if options.device == "cuda" else None
    report: dict[str, object] = {"hardware": hardware(torch.device(options.device, index))}
    runs: list[Run] = []
    tools: dict[str, Tool] = {}
    lock = threading.Lock()

    def write() -> None:
        found = {name: asdict(tool) for name, tool in tools.items()}
        report.update(tools=found, runs=[asdict(run) for run in runs])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        part = options.out.with_suffix(".part")
        part.write_text(json.dumps(report, indent=1))
        part.replace(options.out)

    executable = find_tool()
    if executable is None:
        reason = "compute-sanitizer is not on PATH, nor in CUDA_HOME/bin"
        tools.update({name: Tool(skipped=reason) for name in options.tools})
        write()
        print(f"skipped: {reason}")
        return SKIPPED
    until = time.monotonic() + options.seconds
    processes = Processes()
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}

    def one(tool: str, op: str) -> None:
        run = Run(tool, op, "skipped", words=[f"--seconds {options.seconds:g} were over"])
        begun = time.monotonic()
        if (left := until - begun) > 5:
            own = [sys.executable, __file__, "--run", op, "--device", options.device]
            allowed = min(left, options.limit)
            code, text = processes.run(command(executable, tool, own), allowed, environment)
            if processes.over:
                run.words = ["interrupted"]
            else:
                run.words = []
                judge(run, code, text)
        run.seconds = time.monotonic() - begun
        with lock:
            runs.append(run)
            print(f"{tool} {op}: {run.state} in {run.seconds:.0f} s", flush=True)
            for line in run.words if run.state in ("errors", "failed") else ():
                print(f"    {line}")
            write()

    with interruptible(), ThreadPoolExecutor(options.jobs) as pool:
        try:
            with tempfile.TemporaryDirectory() as folder:
                tools.update(try_tools(executable, Path(folder), options.tools, processes))
            for name, tool in tools.items():
                print(f"{name}: {tool}", flush=True)
            write()
            # The first tool's processes fill Triton's cache for those after it.
            awaited = [
                pool.submit(one, t, op) for t, tool in tools.items() if not tool.skipped for op in names
            ]
            for future in awaited:
                future.result()
        except KeyboardInterrupt:
            processes.end_all()
            pool.shutdown(wait=True, cancel_futures=True)
            write()
            return 130
    if all(tool.skipped for tool in tools.values()):
        print(f"skipped: {'; '.join(dict.fromkeys(str(tool.skipped) for tool in tools.values()))}")
        return SKIPPED
    return int(any(run.state in ("errors", "failed", "timed out") for run in runs))


if __name__ == "__main__":
    sys.exit(main())
