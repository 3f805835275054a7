"""What every op must satisfy, over the sample inputs that each op brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import assert_agrees, results
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from warm import Warm

import robustfast
from robustfast.errors import UserError
from robustfast.ops import OPS, backends, use_backend
from robustfast.ops.backend import BACKENDS, Sample

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
CASES = [
    pytest.param(op, sample, id=f"{op.name}-{sample.label}-{device.type}")
    for op in OPS.values()
    for device in DEVICES
    for sample in op.samples(device)
]
FIRST = [
    pytest.param(op, next(iter(op.samples(device))), id=f"{op.name}-{device.type}")
    for op in OPS.values()
    for device in DEVICES
]


def fused_backends(op: str, sample: Sample) -> list[str]:
    device = next(t.device for t in tree_leaves(sample.args) if isinstance(t, Tensor))
    other = {"cpu": "cuda", "cuda": "cpp"}[device.type]
    return [b for b, reason in backends()[op].items() if reason is None and b not in ("reference", other)]


def skip_without(op: str, backend: str) -> None:
    if backend != "auto" and (reason := backends()[op][backend]):
        pytest.skip(f"{backend}: {reason}")


def test_compiled_library_is_here() -> None:
    """Without it most of what follows would compare the reference with itself."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"the library cannot be built here: the C++ compiler {compiler} is not on PATH")
    missing = {op: reason["cpp"] for op, reason in backends().items() if reason["cpp"]}
    assert not missing


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_backends_agree(op: Any, sample: Sample) -> None:
    names = fused_backends(op.name, sample)
    if not names:
        pytest.skip(f"nothing but the reference runs here: {backends()[op.name]}")
    for backend in names:
        assert_agrees(op.function, sample, results(op.function, backend, *sample.args, **sample.kwargs))


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_two_runs_are_equal(op: Any, sample: Sample) -> None:
    first, second = (results(op.function, "auto", *sample.args, **sample.kwargs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Recorder(TorchDispatchMode):
    """The low-level robustfast ops that a call runs, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("robustfast"):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
@pytest.mark.parametrize(("op", "sample"), FIRST)
def test_opcheck(op: Any, sample: Sample, backend: str) -> None:
    skip_without(op.name, backend)
    with use_backend(backend), Recorder() as recorder:
        op.function(*sample.args, **sample.kwargs)
    assert recorder.calls
    for call in recorder.calls:
        opcheck(*call)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "sample"), FIRST)
def test_traces_whole(op: Any, sample: Sample, backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(op.function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with use_backend(backend):
        got = tree_leaves(compiled(*sample.args, **sample.kwargs))
    expected = results(op.function, backend, *sample.args, **sample.kwargs)
    for ours, eager in zip(got, expected, strict=True):
        assert torch.equal(ours, eager)
        assert ours.stride() == eager.stride()


@pytest.mark.parametrize(("op", "sample"), FIRST)
def test_views_and_layouts(op: Any, sample: Sample) -> None:
    """Values do not depend on how the arguments lie in memory."""
    expected = results(op.function, "auto", *sample.args, **sample.kwargs)

    def strided(t: Tensor) -> Tensor:
        wide = torch.stack([t, torch.full_like(t, 3)], dim=-1)
        return wide[..., 0]

    def late(t: Tensor) -> Tensor:
        # Starts one element into its storage: no vector load is aligned.
        flat = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
        return flat.view(t.shape).copy_(t)

    def channels_last(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    for lay in (strided, late, channels_last):
        args, kwargs = tree_map_only(Tensor, lay, (sample.args, sample.kwargs))
        for backend in ["reference", *fused_backends(op.name, sample)]:
            for ours, theirs in zip(results(op.function, backend, *args, **kwargs), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("op", "sample"), FIRST)
def test_gradients_are_required_alike(op: Any, sample: Sample) -> None:
    args = tree_map_only(
        Tensor, lambda t: t.detach().clone().requires_grad_(t.dtype.is_floating_point), sample.args
    )
    required = {
        backend: [t.requires_grad for t in results(op.function, backend, *args, **sample.kwargs)]
        for backend in ["reference", *fused_backends(op.name, sample)]
    }
    assert len({tuple(flags) for flags in required.values()}) == 1, required


def test_a_missing_backend_is_an_error_with_its_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("every backend is present")
    with pytest.raises(UserError, match=r"backend 'cuda' cannot run here: .*CUDA"), use_backend("cuda"):
        pass
    with (
        pytest.raises(UserError, match="unknown backend 'tritton'; did you mean 'triton'"),
        use_backend("tritton"),
    ):
        pass
    for reasons in backends().values():
        assert list(reasons) == list(BACKENDS)
        assert reasons["reference"] is None
        assert "CUDA" in reasons["cuda"]


def test_backend_is_restored_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert robustfast.ops.backend.active_backend() == os.environ.get("ROBUSTFAST_BACKEND", "auto")


SCRIPT = """
import torch
from torch.utils._pytree import tree_leaves
from robustfast.ops import OPS, backends, use_backend
assert all("is not built" in reasons["cpp"] for reasons in backends().values()), backends()
for op in OPS.values():
    for sample in op.samples(torch.device("cpu")):
        ours = tree_leaves(op.function(*sample.args, **sample.kwargs))
        with use_backend("reference"):
            theirs = tree_leaves(op.function(*sample.args, **sample.kwargs))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs)), (op.name, sample.label)
print("all on the reference")
"""


COLD = """
import torch
from robustfast.ops import OPS
for op in OPS.values():
    sample = next(iter(op.samples(torch.device("cpu"))))
    torch.compile(op.function, fullgraph=True, backend="aot_eager")(*sample.args, **sample.kwargs)
print("all traced")
"""


def test_traces_before_any_eager_call(warm: Warm) -> None:
    done = warm.run("-c", COLD)
    assert done.stdout == "all traced\n", done.stderr


def test_everything_runs_without_the_compiled_library(tmp_path: Path) -> None:
    package = Path(robustfast.__file__).parent
    shutil.copytree(package, tmp_path / "robustfast", ignore=shutil.ignore_patterns("_C.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "all on the reference\n", done.stderr
