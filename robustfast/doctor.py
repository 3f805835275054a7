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

import torch

from robustfast import __version__
from robustfast.ops import backends
from robustfast.ops.backend import active_backend, unusable

__all__ = ["Finding", "findings", "main", "report"]

REBUILD = "pip install -v --no-build-isolation --no-deps -e ."
APEX = (
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation git+https://github.com/NVIDIA/apex"
    " (never `pip install apex`: that name on PyPI is another project)"
)
USAGE = """usage: python -m robustfast.doctor

Prints which backends each op has here and which packages and tools were found; for what is missing, why, and the
command that mends it. The exit code is 2 where ROBUSTFAST_BACKEND names a backend that cannot run."""
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


def findings() -> list[Finding]:
    """Look at packages, compilers and devices. Of the packages, torch alone is imported."""
    return [*_packages(), *_machine()]


def _packages() -> Iterator[Finding]:
    yield Finding("torch", "everything", torch.__version__)
    for name in TRAINING:
        module = {"scikit-learn": "sklearn"}.get(name, name)
        yield _package(
            name, module, "training and evaluation", "pip install --no-build-isolation -e '.[train]'"
        )
    linux = sys.platform == "linux"
    elsewhere = "" if linux else f"there is no build of it for {platform.system()}"
    yield _package("triton", "triton", "Triton kernels", "pip install 'triton>=3.6'", elsewhere)
    cuda = "120" if (torch.version.cuda or "").startswith("12.") else "130"
    mend = f"pip install nvidia-dali-cuda{cuda}"
    yield _package(
        f"nvidia-dali-cuda{cuda}", "nvidia.dali", "no part of this version needs it", mend, elsewhere
    )
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


def _apex() -> Finding:
    """NVIDIA's apex is known by its CUDA extension; the name alone proves nothing."""
    purpose = "no part of this version needs it"
    if _has("amp_C"):
        return Finding("apex", purpose, "installed, with its CUDA extension amp_C")
    if _has("apex"):
        why = "a package called apex is installed, but without NVIDIA's CUDA extension amp_C"
        return Finding("apex", purpose, None, why, f"pip uninstall apex && {APEX}")
    return Finding("apex", purpose, None, "not installed", APEX)


def _machine() -> Iterator[Finding]:
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler):
        yield Finding("C++ compiler", "builds the library", _first_line(compiler, "--version"))
    else:
        mend = f"apt-get install g++, or xcode-select --install on macOS; then {REBUILD}"
        yield Finding("C++ compiler", "builds the library", None, f"{compiler} is not on PATH", mend)
    yield _nvcc()
    yield _device()


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
    name, purpose = "CUDA device", "the cuda and triton backends"
    if not torch.backends.cuda.is_built():
        why = f"torch {torch.__version__} is built without CUDA"
        mend = "on a machine with an NVIDIA GPU: pip install --force-reinstall torch==2.13.0"
        return Finding(name, purpose, None, why, mend)
    if not torch.cuda.is_available():
        why = f"torch is built for CUDA {torch.version.cuda} and sees no device"
        mend = "nvidia-smi must list a device; install or update the driver"
        return Finding(name, purpose, None, why, mend)
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return Finding(name, purpose, "; ".join(f"{d.name}, sm_{d.major}{d.minor}" for d in devices))


def _first_line(*command: str, containing: str = "") -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout or result.stderr).splitlines()
    return next((line.strip() for line in lines if containing in line), "does not run")


def report() -> str:
    """The whole report as text."""
    blocks = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    blocks += _ops()
    blocks.append(_table("packages and tools", findings()))
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
