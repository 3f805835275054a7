"""Optimizers: against torch's plain loops, with steps left out, and apex told from what has its name."""

from __future__ import annotations

import importlib
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_equal, tiny
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.training import optimizers
from robustfast.training.config import TrainConfig
from robustfast.training.optimizers import APEX_RECIPE, Updater, apex_status, overridden

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def parameters(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A channels-last convolution's weight, a matrix and a bias that never gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 3, 3), (5, 7), (5,))
    values = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(value) for value in values]


def gradients(into: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step + 1)
    for parameter in into[:2]:
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


def config(**fields: Any) -> TrainConfig:
    return tiny(**({"lr": 0.1, "weight_decay": 0.02} | fields))


CASES: list[tuple[dict[str, Any], Any]] = [
    ({"momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02, foreach=False)),
    (
        {"momentum": 0.9},
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02, momentum=0.9, foreach=False),
    ),
    (
        {"momentum": 0.8, "nesterov": True},
        lambda p: torch.optim.SGD(p, 0.1, 0.8, weight_decay=0.02, nesterov=True, foreach=False),
    ),
    (
        {"optimizer": "adamw", "betas": (0.8, 0.99)},
        lambda p: torch.optim.AdamW(p, 0.1, betas=(0.8, 0.99), weight_decay=0.02, foreach=False),
    ),
]
KINDS = ["sgd", "momentum", "nesterov", "adamw"]


@pytest.mark.parametrize(("fields", "plain"), CASES, ids=KINDS)
def test_steps_are_those_of_torchs_plain_loops(fields: dict[str, Any], plain: Any) -> None:
    mine, theirs = parameters(), parameters()
    updater, optimizer = Updater(mine, config(**fields)), plain(theirs)
    for step in range(5):
        gradients(mine, step)
        gradients(theirs, step)
        updater.step(0.1 / (step + 1), GO)
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        for one, other in zip(mine, theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("fields", "plain"), CASES, ids=KINDS)
def test_a_skipped_step_leaves_everything_as_it_was(fields: dict[str, Any], plain: Any) -> None:
    mine, theirs = parameters(), parameters()
    updater, other = (Updater(p, config(**fields)) for p in (mine, theirs))
    # Also as the very first: what is allocated then must not stay as the memory was.
    for step, skip in enumerate((SKIP, GO, SKIP, GO)):
        gradients(mine, step)
        before = deepcopy((mine, updater.state_dict()))
        updater.step(0.1, skip)
        if skip:
            assert_equal([p.detach() for p in mine], [p.detach() for p in before[0]], f"step {step}")
            assert_equal(updater.state_dict(), before[1], f"step {step}")
        else:
            gradients(theirs, step)
            other.step(0.1, GO)
    assert_equal([p.detach() for p in mine], [p.detach() for p in theirs], "end")


def test_the_factor_goes_with_every_learning_rate() -> None:
    mine, theirs = parameters(), parameters()
    scaled, plain = Updater(mine, config(), factor=0.25), Updater(theirs, config())
    for step in range(3):
        gradients(mine, step)
        gradients(theirs, step)
        scaled.step(0.4, GO)
        plain.step(0.1, GO)
    assert torch.equal(mine[0], theirs[0])


@pytest.mark.parametrize(("fields", "plain"), CASES, ids=KINDS)
def test_state_comes_back_and_settings_do_not(fields: dict[str, Any], plain: Any) -> None:
    mine = parameters()
    updater = Updater(mine, config(**fields))
    for step in range(3):
        gradients(mine, step)
        updater.step(0.1, GO)
    kept, copies = deepcopy(updater.state_dict()), [nn.Parameter(p.detach().clone()) for p in mine]
    again = Updater(copies, config(**fields))
    again.load_state_dict(deepcopy(kept))
    assert_equal(again.state_dict(), kept, "state")
    for one in (mine, copies):
        gradients(one, 3)
    updater.step(0.1, GO)
    again.step(0.1, GO)
    assert_equal([p.detach() for p in copies], [p.detach() for p in mine], "weights")
    assert set(kept) == {"state", "counters"}


def test_where_no_kernel_is_fused_the_foreach_one_serves_and_it_is_said_once() -> None:
    """Torch has no fused kernel for complex weights, on any device."""
    optimizers._fused_runs.cache_clear()
    mine, theirs = (parameters(dtype=torch.complex64) for _ in range(2))
    with pytest.warns(
        RuntimeWarning, match=r"sgd steps with torch's foreach kernels: no fused one for"
    ) as said:
        updater, again = Updater(mine, config()), Updater(theirs, config())
    assert len(said) == 1
    gradients(mine, 0)
    updater.step(0.1, SKIP)
    assert torch.equal(mine[0], theirs[0])
    updater.step(0.1, GO)
    gradients(theirs, 0)
    again.step(0.1, GO)
    assert torch.equal(mine[0], theirs[0])
    assert not torch.equal(mine[0], parameters(dtype=torch.complex64)[0])


def test_adamw_falls_back_too() -> None:
    optimizers._fused_runs.cache_clear()
    mine, theirs = (parameters(dtype=torch.complex64) for _ in range(2))
    with pytest.warns(RuntimeWarning, match=r"adamw steps with torch's foreach kernels"):
        updater = Updater(mine, config(optimizer="adamw"))
    plain = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.02, foreach=False)
    for step in range(2):
        gradients(mine, step)
        gradients(theirs, step)
        updater.step(0.1, GO)
        plain.step()
    assert torch.allclose(mine[1], theirs[1], rtol=1e-6)


# --- what an objective sets ------------------------------------------------------------------------------


def test_an_objective_overrides_fields_of_one_optimizer() -> None:
    run = config(nesterov=True, clip_norm=1.0)
    own = overridden(run, {"optimizer": "adamw", "lr": 0.5, "weight_decay": 0.0, "clip_norm": 0.0})
    assert (own.optimizer, own.lr, own.weight_decay, own.clip_norm) == ("adamw", 0.05, 0.0, 0.0)
    assert overridden(run, {}) == run


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        ({"epochs": 3}, TypeError, r"sets epochs, expected some of betas, clip_norm"),
        ({"momentum": -1.0}, UserError, r"--momentum -1.0"),
        ({"optimizer": "lamb"}, UserError, r"--optimizer 'lamb': expected one of sgd, adamw"),
    ],
)
def test_what_no_optimizer_has(overrides: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        overridden(config(), overrides)


# --- apex ------------------------------------------------------------------------------------------------


class Site:
    """An empty folder in front of `sys.path`, to install packages in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, text: str = "") -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()

    def nvidia(self) -> None:
        """NVIDIA's package without what is compiled."""
        self.install("apex/__init__.py")
        self.install("apex/optimizers/__init__.py", "class FusedSGD: ...\nclass FusedAdam: ...\n")

    def unrelated(self) -> None:
        """As on PyPI: its code must not run."""
        self.install("apex/__init__.py", "raise RuntimeError('imported')\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in ("amp_C", "apex", "apex.optimizers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    if apex_status() != "NVIDIA apex is not installed":
        pytest.skip("an apex is installed here, which these tests would meet")
    monkeypatch.syspath_prepend(tmp_path)
    return Site(tmp_path)


def test_apex_is_known_by_its_compiled_module(site: Site) -> None:
    assert apex_status() == "NVIDIA apex is not installed"
    site.nvidia()
    assert apex_status() == "NVIDIA apex is installed without its compiled modules (there is no amp_C)"
    site.install("amp_C.py")
    assert apex_status() is None


def test_the_unrelated_apex_is_told_apart(site: Site) -> None:
    site.unrelated()
    assert "not NVIDIA's but the unrelated project of that name on PyPI" in str(apex_status())
    assert "pip uninstall apex" in str(apex_status())
    # On top of a build of NVIDIA's, whose compiled module is still there.
    site.install("amp_C.py")
    assert "hidden by another package of that name: pip uninstall apex" in str(apex_status())
    (site.folder / "apex/__init__.py").unlink()
    (site.folder / "apex").rmdir()
    importlib.invalidate_caches()
    assert apex_status() == "NVIDIA apex's compiled module amp_C is there, its package is gone"


def test_an_apex_that_does_not_load(site: Site) -> None:
    site.nvidia()
    site.install("amp_C.py", "raise ImportError('amp_C.so: undefined symbol: _ZN3c10')\n")
    reason = str(apex_status())
    assert "built for another torch" in reason
    assert "undefined symbol: _ZN3c10" in reason


def test_asking_for_apex_where_it_is_not(site: Site) -> None:
    with pytest.raises(UserError) as failure:
        Updater(parameters(), config(optimizer_impl="apex", device="auto"))
    assert str(failure.value) == (
        f"--optimizer-impl apex: NVIDIA apex is not installed; build it with: {APEX_RECIPE}; or take "
        f"--optimizer-impl torch"
    )
    site.unrelated()
    with pytest.raises(UserError, match=r"unrelated project of that name on PyPI .*github\.com/NVIDIA/apex"):
        Updater(parameters(), config(optimizer_impl="apex", device="auto"))


def test_apex_on_the_cpu(site: Site) -> None:
    site.nvidia()
    site.install("amp_C.py")
    with pytest.raises(
        UserError, match=r"apex moves float32 weights on a GPU, these are torch.float32 on cpu"
    ):
        Updater(parameters(), config(optimizer_impl="apex", device="auto"))


def test_auto_is_torchs(site: Site) -> None:
    site.nvidia()
    site.install("amp_C.py")
    assert isinstance(Updater(parameters(), config(optimizer_impl="auto"))._optimizer, torch.optim.SGD)


# --- on a GPU --------------------------------------------------------------------------------------------


def ends(fields: dict[str, Any], impl: str) -> list[Tensor]:
    mine = parameters("cuda")
    updater = Updater(mine, config(**fields, optimizer_impl=impl, device="auto"))
    for step, skip in enumerate((SKIP, GO, GO, SKIP, GO)):
        gradients(mine, step)
        updater.step(0.1, skip.cuda())
    return [p.detach() for p in mine]


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [fields for fields, _ in CASES], ids=KINDS)
def test_apex_steps_are_torchs(fields: dict[str, Any]) -> None:
    if reason := apex_status():
        pytest.skip(f"needs NVIDIA apex: {reason}")
    for one, other in zip(ends(fields, "apex"), ends(fields, "torch"), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("fields", [fields for fields, _ in CASES], ids=KINDS)
def test_a_captured_step_takes_its_rate_and_whether_to_go_from_the_device(fields: dict[str, Any]) -> None:
    mine, theirs = parameters("cuda"), parameters("cuda")
    updater = Updater(mine, config(**fields, whole_step="graph", device="auto"))
    eager = Updater(theirs, config(**fields, device="auto"))
    gradients(mine, 0)
    lr, skip = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        updater.step(lr, skip)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        updater.step(lr, skip)
    for step, (rate, out) in enumerate(((0.1, 0.0), (0.2, 1.0), (0.05, 0.0))):
        for own in (mine, theirs):
            generator = torch.Generator().manual_seed(step + 1)
            for parameter in own[:2]:
                value = torch.randn(parameter.shape, generator=generator).cuda()
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(value)
        lr.fill_(rate)
        skip.fill_(out)
        graph.replay()
        eager.step(rate, torch.tensor(out, device="cuda"))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)
