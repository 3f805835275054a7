"""What runs fused here, what does not, why, and the command that mends it: ``python -m robustfast.doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robustfast import __version__
from robustfast.errors import UserError
from robustfast.ops import backends
from robustfast.ops.backend import active_backend, unusable

__all__ = ["Finding", "findings", "main", "report", "sections"]

REBUILD = "pip install -v --no-build-isolation --no-deps -e ."
USAGE = """usage: python -m robustfast.doctor

Prints which backends each op has here, the devices, the precisions they compute in, what several processes can talk
over, and which packages and tools were found; for what is missing, why, and the command that mends it. The exit code is
2 where ROBUSTFAST_BACKEND names a backend that cannot run."""
CUDA_TORCH = "pip install --force-reinstall torch==2.13.0"
TRAIN_EXTRA = "pip install --no-build-isolation -e '.[train]'"
TRAINING = ("matplotlib", "rich", "safetensors", "scikit-learn", "scipy", "tensorboard", "tyro")


@dataclass(frozen=True)
class Finding:
    """One thing the project can use.

    Attributes:
        name: what it is called here.
        purpose: what it serves.
        found: its version or place; None when it is missing.
        why: why it is missing; empty when found.
        mend: the command that brings it; empty when found, or when there is nothing to do on this machine.
    """

    name: str
    purpose: str
    found: str | None
    why: str = ""
    mend: str = ""


def sections() -> dict[str, list[Finding]]:
    """Look at devices, precisions, processes, packages and tools; of the packages, import torch and DALI alone."""
    return {
        "devices": [*_devices()],
        "precision (--precision)": [*_precisions()],
        "several processes (torchrun)": [*_processes()],
        "packages and tools": [*_packages(), *_tools()],
    }


def findings() -> list[Finding]:
    """Everything in `sections`, one after the other."""
    return [finding for found in sections().values() for finding in found]


def _devices() -> Iterator[Finding]:
    model, flags = _processor()
    wide = {"avx2": "AVX2", "avx512f": "AVX-512", "asimd": "NEON", "sve": "SVE"}
    vectors = [name for flag, name in wide.items() if flag in flags]
    yield Finding("CPU", "everything", f"{model}, {os.cpu_count()} processors{_listed(vectors)}")
    limit = os.environ.get("OMP_NUM_THREADS")
    of = f", as OMP_NUM_THREADS={limit} has it" if limit else ""
    yield Finding("CPU threads", "--threads 0", f"{torch.get_num_threads()}{of}")
    yield _memory()
    yield _device()


def _processor() -> tuple[str, frozenset[str]]:
    """The processor's name and what it says it can; on Linux alone it says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    name = fields.get("model name", platform.machine()).strip()
    return name, frozenset(fields.get("flags", fields.get("Features", "")).split())


def _listed(names: Sequence[str]) -> str:
    return f"; {', '.join(names)}" if names else ""


def _memory() -> Finding:
    name, purpose = "memory", "the resident loader, of which it takes up to a quarter"
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return Finding(name, purpose, None, f"{platform.system()} does not say how much there is")
    return Finding(name, purpose, f"{total / 2**30:.1f} GiB")


def _precisions() -> Iterator[Finding]:
    from robustfast.training.precision import PRECISIONS, Precision

    for kind in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        device = torch.device(kind)
        for precision in PRECISIONS:
            name, purpose = f"{precision} on {kind}", "convolutions and matrix products"
            try:
                Precision(precision, device)
            except UserError as error:
                yield Finding(name, purpose, None, str(error).partition("; use")[0], "--precision fp32")
                continue
            yield Finding(name, purpose, f"computes, {_speed(precision, kind)}")


NATIVE = {
    "bf16": {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX", "bf16": "Arm BF16"},
    "fp16": {"avx512_fp16": "AVX-512 FP16", "amx_fp16": "AMX", "asimdhp": "Arm FP16"},
}
"""What a processor calls its arithmetic in a short type, and what people call it."""


def _speed(precision: str, kind: str) -> str:
    """Whether the device has arithmetic of this type itself, or converts to another one and back."""
    if precision == "fp32":
        return "natively"
    if kind == "cuda":
        # Tensor cores know fp16 since compute capability 7.0, bf16 since 8.0.
        native = torch.cuda.get_device_capability() >= ((7, 0) if precision == "fp16" else (8, 0))
        return "natively on tensor cores" if native else "without tensor cores, no faster than fp32"
    if found := [name for flag, name in NATIVE[precision].items() if flag in _processor()[1]]:
        return f"natively ({', '.join(found)})"
    if sys.platform != "linux":
        return f"whether natively, {platform.system()} does not say"
    return "by conversion to fp32 and back, slower than fp32: this processor has no such arithmetic"


def _processes() -> Iterator[Finding]:
    name, purpose = "gloo", "processes on the CPU"
    if torch.distributed.is_available() and torch.distributed.is_gloo_available():
        yield Finding(name, purpose, "in this torch")
    else:
        yield Finding(name, purpose, None, "this torch is built without it", CUDA_TORCH)
    name, purpose = "nccl", "processes on GPUs"
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield Finding(name, purpose, f"{'.'.join(map(str, torch.cuda.nccl.version()))}")
    else:
        mend = f"on a machine with NVIDIA GPUs: {CUDA_TORCH}"
        yield Finding(name, purpose, None, "this torch is built without it", mend)
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    found = (
        f"number {rank} of {size}, from torchrun's variables" if rank and size else "one: not under torchrun"
    )
    yield Finding("processes here", "torchrun --nproc-per-node N -m robustfast.train", found)


def _packages() -> Iterator[Finding]:
    yield Finding("torch", "everything", torch.__version__)
    for name in TRAINING:
        module = {"scikit-learn": "sklearn"}.get(name, name)
        yield _package(name, module, "training and evaluation", TRAIN_EXTRA)
    linux = sys.platform == "linux"
    elsewhere = "" if linux else f"there is no build of it for {platform.system()}"
    yield _package("triton", "triton", "Triton kernels", "pip install 'triton>=3.6'", elsewhere)
    cuda = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    mend = f"pip install nvidia-dali-cuda{cuda}"
    dali = _package(f"nvidia-dali-cuda{cuda}", "nvidia.dali", "--loader dali", mend, elsewhere)
    yield dali
    if dali.found:
        yield _dali_operators(mend)
    yield _apex()
    yield _package("ninja", "ninja", "parallel builds of the library", "pip install ninja")
    yield _package("pytest-benchmark", "pytest_benchmark", "make bench", "pip install pytest-benchmark")


def _package(name: str, module: str, purpose: str, mend: str, elsewhere: str = "") -> Finding:
    """A Python package; `elsewhere` says why this platform goes without it."""
    if _has(module):
        return Finding(name, purpose, _version(name))
    return Finding(name, purpose, None, elsewhere or "not installed", "" if elsewhere else mend)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "installed"


def _dali_operators(mend: str) -> Finding:
    """Whether DALI's operators run here, on the CPU and on a GPU: installed is not enough."""
    name, purpose = "DALI operators", "--loader dali"
    kinds = ["cpu", *(["gpu"] if torch.cuda.is_available() else [])]
    try:
        for kind in kinds:
            _flip(kind)
    except (
        Exception
    ) as error:  # DALI raises RuntimeError for most, and what a library lacks as whatever it met
        why = f"its {kind} operators fail ({' '.join(str(error).split())[:200]})"
        return Finding(
            name, purpose, None, why, f"{mend} --force-reinstall, for the driver that nvidia-smi names"
        )
    without = "" if "gpu" in kinds else "; those for GPUs have none here"
    return Finding(name, purpose, f"run on {' and '.join(kinds)}{without}")


def _flip(kind: str) -> None:
    """Turn one small image over in a DALI pipeline."""
    import numpy as np
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(1, 1, None if kind == "cpu" else 0)
    with pipeline:
        image = fn.external_source(lambda: [np.zeros((2, 2, 1), np.uint8)])
        pipeline.set_outputs(fn.flip(image if kind == "cpu" else image.gpu(), horizontal=1))
    pipeline.build()
    pipeline.run()


def _apex() -> Finding:
    """NVIDIA's apex is known by its compiled modules; the name alone proves nothing."""
    name, purpose = "apex", "--optimizer-impl apex"
    try:
        from robustfast.training.optimizers import APEX_RECIPE, apex_status
    except ImportError as error:
        return Finding(name, purpose, None, f"training itself does not import ({error})", TRAIN_EXTRA)
    reason = apex_status()
    if reason is None:
        return Finding(name, purpose, "NVIDIA's, with its compiled modules")
    other = reason.endswith(UNINSTALL)
    mend = f"{UNINSTALL.removeprefix(': ')} && {APEX_RECIPE}" if other else APEX_RECIPE
    never = " (never `pip install apex`: that name on PyPI is another project)"
    return Finding(name, purpose, None, reason.removesuffix(UNINSTALL), mend + never)


UNINSTALL = ": pip uninstall apex"


def _tools() -> Iterator[Finding]:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler):
        yield Finding("C++ compiler", "builds the library", _first_line(compiler, "--version"))
    else:
        mend = f"apt-get install g++, or xcode-select --install on macOS; then {REBUILD}"
        yield Finding("C++ compiler", "builds the library", None, f"{compiler} is not on PATH", mend)
    yield _nvcc()


def _nvcc() -> Finding:
    purpose = "builds the CUDA kernels"
    home = next(filter(None, map(os.environ.get, ("CUDA_HOME", "CUDA_PATH"))), "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which(str(Path(home, "bin", "nvcc")))
    version = torch.version.cuda
    if nvcc is None:
        mend = f"install the CUDA toolkit {version or '13.0'}, export CUDA_HOME to its folder, then {REBUILD}"
        return Finding("nvcc", purpose, None, "neither on PATH nor under CUDA_HOME", mend)
    found = f"{nvcc}: {_first_line(nvcc, '--version', containing='release')}"
    return Finding("nvcc", purpose, found if version else f"{found}; of no use to a torch without CUDA")


def _device() -> Finding:
    name, purpose = "CUDA device", "training, the cuda and triton backends"
    if not torch.backends.cuda.is_built():
        why = f"torch {torch.__version__} is built without CUDA"
        mend = f"on a machine with an NVIDIA GPU: {CUDA_TORCH}"
        return Finding(name, purpose, None, why, mend)
    if not torch.cuda.is_available():
        why = f"torch is built for CUDA {torch.version.cuda} and sees no device"
        mend = "nvidia-smi must list a device; install or update the driver"
        return Finding(name, purpose, None, why, mend)
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Finding(name, purpose, "; ".join(map(_gpu, devices)))


def _gpu(device: Any) -> str:
    size = device.total_memory / 2**30
    return (
        f"{device.name}, sm_{device.major}{device.minor}, {size:.0f} GiB, {device.multi_processor_count} SMs"
    )


def _first_line(*command: str, containing: str = "") -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout or result.stderr).splitlines()
    return next((line.strip() for line in lines if containing in line), "does not run")


def report() -> str:
    """The whole report as text."""
    blocks = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    blocks += _ops()
    blocks += [_table(title, found) for title, found in sections().items()]
    return "\n\n".join(blocks)


def _ops() -> list[str]:
    table = backends()
    names = list(next(iter(table.values())))
    width = max(map(len, table)) + 2
    lines = [f"ops of robustfast {__version__}; backend in force: {active_backend()}"]
    if reason := unusable(active_backend()):
        lines.append(
            f"  ROBUSTFAST_BACKEND={active_backend()}: {reason}; every op will refuse to run, unset it"
        )
    lines.append("  " + "".ljust(width) + "".join(name.ljust(11) for name in names))
    reasons: dict[tuple[str, str], list[str]] = {}
    for op, states in table.items():
        row = "".join(("yes" if reason is None else "no").ljust(11) for reason in states.values())
        lines.append("  " + op.ljust(width) + row)
        for backend, reason in states.items():
            if reason is not None:
                reasons.setdefault((backend, reason), []).append(op)
    missing = ["why not, and what mends it"]
    for (backend, reason), ops in reasons.items():
        missing.append(f"  {backend} ({'every op' if len(ops) == len(table) else ', '.join(ops)}): {reason}")
    return ["\n".join(lines), *(["\n".join(missing)] if reasons else [])]


def _table(title: str, rows: list[Finding]) -> str:
    width = max(len(row.name) for row in rows) + 2
    lines = [title]
    for row in rows:
        lines.append(f"  {row.name.ljust(width)}{row.found or 'missing: ' + row.why} [{row.purpose}]")
        if row.mend:
            lines.append(f"  {''.ljust(width)}mend: {row.mend}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report and return the exit code: 2, with one line on stderr, where ROBUSTFAST_BACKEND is unusable.

    Args:
        argv: arguments after the program's name: none, or ``--help``. None takes `sys.argv`.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if arguments:
        print(f"error: doctor takes no arguments, got {' '.join(arguments)}", file=sys.stderr)
        return 2
    print(report(), flush=True)
    if reason := unusable(active_backend()):
        print(f"error: ROBUSTFAST_BACKEND={active_backend()}: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
