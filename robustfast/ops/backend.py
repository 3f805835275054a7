"""How an op is registered once and runs on four backends.

Every op has one schema, defined in three libraries:

* ``robustfast``            the reference is the default kernel; C++ (CPU) and CUDA C++ kernels win by dispatch key;
* ``robustfast_reference``  the reference alone, on every device;
* ``robustfast_triton``     the Triton kernel.

All three share the fake kernel and the gradient formula, so each backend traces, compiles and differentiates alike, and
choosing a backend is choosing a library: no re-registration, no branch inside a kernel.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = [
    "BACKENDS",
    "OPS",
    "Op",
    "Sample",
    "active_backend",
    "backends",
    "configured_backend",
    "prepare",
    "register",
    "unusable",
    "use_backend",
]

BACKENDS = ("reference", "cpp", "cuda", "triton")

_NAMESPACE = {
    "auto": "robustfast",
    "cpp": "robustfast",
    "cuda": "robustfast",
    "reference": "robustfast_reference",
    "triton": "robustfast_triton",
}
_LIBRARIES = {name: torch.library.Library(name, "DEF") for name in dict.fromkeys(_NAMESPACE.values())}

# First present wins. CUDA C++ before Triton: the same bytes, and no launch-time specialisation on the host.
_ORDER = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}


@dataclass(frozen=True)
class Sample:
    """One sample input of an op: what its tests and benchmarks call it with.

    Attributes:
        label: short name, unique within the op.
        args, kwargs: arguments of the public function.
        exact: whether every backend must give the reference's result bit for bit; otherwise results are judged against
            a float64 truth.
    """

    label: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    exact: bool = True


@dataclass(frozen=True)
class Op:
    """A registered op: its public function, its sample inputs and the low-level schemas behind it."""

    name: str
    function: Callable[..., Any]
    samples: Callable[[torch.device], Iterable[Sample]]
    schemas: tuple[str, ...]


OPS: dict[str, Op] = {}


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    triton: str,
    gradient: Callable[[Any], tuple[Callable[..., Any], Callable[..., Any]]] | None = None,
) -> None:
    """Define a low-level op in the three libraries.

    Args:
        name: the schema's name, without namespace.
        schema: arguments and returns, ``"(Tensor x, ...) -> Tensor"``. Mutated arguments end in ``-> ()``.
        reference: plain PyTorch implementation with the schema's arguments.
        fake: shapes only, with the schema's arguments.
        triton: ``"module:function"`` in `robustfast.kernels`, imported at the first call.
        gradient: given ``torch.ops.<library>``, returns ``(setup_context, backward)``. None: the op has no gradient,
            and its outputs never require one.
    """

    def run_triton(*args: Any, **kwargs: Any) -> Any:
        module, function = triton.split(":")
        return getattr(importlib.import_module(f"robustfast.kernels.{module}"), function)(*args, **kwargs)

    # Without no_grad the aten calls of the reference would record a graph that a compiled kernel does not.
    kernels = {
        "robustfast": torch.no_grad()(reference),
        "robustfast_reference": torch.no_grad()(reference),
        "robustfast_triton": torch.no_grad()(run_triton),
    }
    for namespace, library in _LIBRARIES.items():
        library.define(f"{name}{schema}")
        library.impl(name, kernels[namespace], "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)
        if gradient is None:
            library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        else:
            setup_context, backward = gradient(getattr(torch.ops, namespace))
            torch.library.register_autograd(
                f"{namespace}::{name}", backward, setup_context=setup_context, lib=library
            )
    _SCHEMAS.append(name)
    _tables.clear()


_SCHEMAS: list[str] = []


_BUILD = "pip install --no-build-isolation --no-deps -e ."


def _load_library() -> str | None:
    """Load robustfast/_C.so; None when it is loaded, else why it is not and how to mend it."""
    path = Path(__file__).resolve().parent.parent / "_C.so"
    if not path.exists():
        return "robustfast/_C.so is not built (it needs a C++ compiler); run: " + _BUILD
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = str(error).splitlines()[0]
        return f"robustfast/_C.so does not load ({reason}); rebuild it: {_BUILD}"
    return None


_LIBRARY_MISSING = _load_library()


def _has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"robustfast::{name}", key)


def _missing(name: str, backend: str) -> str | None:
    """Why `backend` cannot run the low-level op `name` here; None when it can."""
    if backend == "reference":
        return None
    if backend == "cpp":
        if _LIBRARY_MISSING or _has_kernel(name, "CPU"):
            return _LIBRARY_MISSING
        return f"robustfast/_C.so holds no CPU kernel for {name}; it is older than the sources, rebuild it: {_BUILD}"
    if backend == "cuda":
        if not torch.backends.cuda.is_built():
            version = torch.__version__.partition("+")[0]
            return (
                f"torch {torch.__version__} is built without CUDA; where there is an NVIDIA GPU, take a CUDA build "
                f"(pytorch.org/get-started), on Linux: pip install --force-reinstall torch=={version}"
            )
        if _LIBRARY_MISSING:
            return _LIBRARY_MISSING
        if not _has_kernel(name, "CUDA"):
            return f"robustfast/_C.so is built without CUDA; rebuild it: CUDA_HOME=/usr/local/cuda {_BUILD}"
        return None if torch.cuda.is_available() else "no CUDA device is visible; run: nvidia-smi"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; run: pip install triton"
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "no CUDA device is visible; TRITON_INTERPRET=1 runs Triton kernels on the CPU, slowly, for tests"


def backends() -> dict[str, dict[str, str | None]]:
    """Which backends each op has here.

    Returns:
        op name -> backend name -> None when that backend can run the op here, else the reason and the mend.
    """

    def reason(op: Op, backend: str) -> str | None:
        return next(filter(None, (_missing(schema, backend) for schema in op.schemas)), None)

    return {name: {backend: reason(op, backend) for backend in BACKENDS} for name, op in OPS.items()}


_active = os.environ.get("ROBUSTFAST_BACKEND", "auto")
# Backend -> (schema, device type) -> overload. Filled before an op is called: torch.compile cannot trace the search.
_tables: dict[str, dict[tuple[str, str], Any]] = {}


def active_backend() -> str:
    """The backend in force: "auto" or one of `BACKENDS`."""
    return _active


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run ops on one backend inside the block, for the whole process.

    Args:
        name: "auto" (the fastest measured for each tensor's device), "reference", "cpp", "cuda" or "triton".

    Raises:
        UserError: unknown name, or a backend that cannot run here; the message says why. There is no silent fallback.
    """
    global _active
    if name not in _tables:
        _tables[name] = _table(name)
    before, _active = _active, name
    try:
        yield
    finally:
        _active = before


@contextmanager
def configured_backend(name: str) -> Iterator[None]:
    """`use_backend` as ``--backend`` means it: "auto" keeps the backend in force, which ROBUSTFAST_BACKEND chooses.

    Raises:
        UserError: as `use_backend`; the message names the variable where it is the variable's value.
    """
    if name == "auto":
        name = _active
        if reason := unusable(name):
            raise UserError(f"ROBUSTFAST_BACKEND={name}: {reason}; unset it or give another")
    with use_backend(name):
        yield


def unusable(name: str) -> str | None:
    """Why `use_backend` would refuse `name`; None where it would not."""
    try:
        with use_backend(name):
            return None
    except UserError as error:
        return str(error)


def select(name: str, device: torch.device) -> Any:
    """The overload that runs the low-level op `name` for tensors on `device` under the active backend."""
    table = _tables.get(_active)
    if table is None:
        table = _tables[_active] = _table(_active)
    overload = table.get((name, device.type))
    if overload is None:
        overload = table[name, device.type] = _find(name, device.type, _active)
    return overload


def _table(backend: str) -> dict[tuple[str, str], Any]:
    lookup("backend", _NAMESPACE, backend)
    if backend != "auto":
        for schema in _SCHEMAS:
            if reason := _missing(schema, backend):
                raise UserError(f"backend {backend!r} cannot run here: {reason}")
    devices = [device for device in ("cpu", "cuda", "meta") if _runs_on(backend, device)]
    return {(schema, device): _find(schema, device, backend) for schema in _SCHEMAS for device in devices}


def _runs_on(backend: str, device_type: str) -> bool:
    return device_type == "meta" or {"cpp": "cpu", "cuda": "cuda"}.get(backend, device_type) == device_type


def _find(name: str, device_type: str, backend: str) -> Any:
    if not _runs_on(backend, device_type):
        raise UserError(
            f"backend {backend!r} runs on {'CPU' if backend == 'cpp' else 'CUDA'} tensors, the input is on "
            f"{device_type}; move the tensors or use backend 'auto'"
        )
    if backend == "auto":
        order = _ORDER.get(device_type, ("reference",))
        backend = next(candidate for candidate in order if _missing(name, candidate) is None)
    return getattr(getattr(torch.ops, _NAMESPACE[backend]), name).default


def prepare() -> None:
    """Fill the tables of "auto" and of the backend that ROBUSTFAST_BACKEND asks for, once all ops are registered.

    One that cannot run here is not refused yet: the first op says why.
    """
    _tables["auto"] = _table("auto")
    if _active != "auto" and _active in _NAMESPACE and not any(_missing(s, _active) for s in _SCHEMAS):
        _tables[_active] = _table(_active)
