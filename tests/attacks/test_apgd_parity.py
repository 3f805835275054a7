"""APGD beside the published implementations, step by step: iterates, best losses and step sizes of every sample."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import APGD, APGDT, Attack
from robustfast.attacks import apgd as module

RECORDED = Path(__file__).parent / "recorded"
History = list[dict[str, Tensor]]


@pytest.fixture
def torchattacks() -> Iterator[Any]:
    """The package, run in float64 throughout: it makes its tensors in the default dtype."""
    package = pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    yield package
    torch.set_default_dtype(torch.float32)
    torch.set_rng_state(state)


@pytest.fixture
def double(make_net: Callable[..., nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, twelve images and the classes it gives them."""
    net = make_net(torch.float64).eval()
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0] = x[0].round()  # at the walls of the box
    with torch.no_grad():
        net[7].bias -= net(x).mean(0)  # so that every class is somebody's
    return net, x, net(x).argmax(1)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> History:
    """The state after each step of every attack in the test."""
    found: History = []
    track = module.apgd_track

    def watched(x_adv: Tensor, grad: Tensor, loss: Tensor, *args: Any, **state: Any) -> None:
        track(x_adv, grad, loss, *args, **state)
        kept = ("x_best", "loss_best", "step_size", "x_fooled", "sparsity")
        found.append({"loss": loss} | {name: state[name].clone() for name in kept if name in state})

    monkeypatch.setattr(module, "apgd_track", watched)
    return found


def watch(theirs: Any) -> tuple[History, list[Tensor]]:
    """Have a torchattacks attack tell of its state before each pass, which is that after the step before; and of the
    starts of its runs."""
    found: History = []
    starts: list[Tensor] = []
    logits = theirs.get_logits

    def watched(images: Tensor, *args: Any, **more: Any) -> Tensor:
        seen = sys._getframe(1).f_locals
        if images is seen.get("x_adv"):
            if "step_size" not in seen:
                starts.append(images.detach().clone())
            elif seen["i"]:
                row = {name: seen[name].clone() for name in ("x_best", "loss_best")}
                found.append(
                    row | {"loss": seen["y1"].clone(), "step_size": seen["step_size"].flatten().clone()}
                )
        return logits(images, *args, **more)

    theirs.get_logits = watched
    return found, starts


def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sample of a torchattacks attack start in the same direction, whichever are left in a run."""
    t = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda shape: t.expand(shape).clone())
    monkeypatch.setattr(torch, "randn", lambda shape: (t - 0.5).expand(shape).clone())


def compare(ours: History, theirs: History, steps: int, tolerance: float) -> int:
    """Hold our states to theirs, which lack the last of each run; returns in how many pixels best points differ.

    Where rounding may differ, a sample that has converged is let go once rounding decides on its step size: its best
    loss must agree to ten digits then, and no more than one may go.
    """
    ours = [row for number, row in enumerate(ours) if (number + 1) % steps]
    assert len(ours) == len(theirs) > 0
    apart, close = 0, {"rtol": tolerance or 1e-12, "atol": tolerance or 1e-12}
    gone: Tensor | None = None
    for mine, other in zip(ours, theirs, strict=True):
        if gone is None or len(gone) != len(mine["loss"]):
            gone = torch.zeros_like(mine["loss"], dtype=torch.bool)
        differ = (mine["step_size"] != other["step_size"]) & ~gone
        if tolerance and differ.any():
            assert torch.allclose(
                mine["loss_best"][differ], other["loss_best"][differ], rtol=1e-10, atol=1e-10
            )
            gone = gone | differ
        assert gone.sum() <= 1
        assert torch.equal(mine["step_size"][~gone], other["step_size"][~gone])
        # A ratio of logits is as large as its denominator is small.
        assert torch.allclose(mine["loss_best"], other["loss_best"], **close)
        assert torch.allclose(mine["loss"][~gone], other["loss"][~gone], **close)
        if tolerance:
            assert torch.allclose(mine["x_best"][~gone], other["x_best"][~gone], rtol=0, atol=tolerance)
        apart += int((mine["x_best"] != other["x_best"]).sum())
    return apart


CASES = [("linf", 0.008, 0.0), ("l2", 0.15, 1e-5)]


@pytest.mark.parametrize("steps", [10, 20, 100])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("norm", "eps", "tolerance"), CASES)
def test_apgd_is_torchattacks_step_by_step(
    double: tuple[nn.Module, Tensor, Tensor],
    torchattacks: Any,
    ours: History,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    eps: float,
    tolerance: float,
    loss: str,
    steps: int,
) -> None:
    net, x, y = double
    same_draws(monkeypatch)
    peer = torchattacks.APGD(net, norm=norm.capitalize(), eps=eps, steps=steps, loss=loss)
    theirs, starts = watch(peer)
    expected = peer(x, y)
    found = APGD(net, eps=eps, norm=norm, steps=steps, loss=loss)(x, y, start=starts[0])
    apart = compare(ours, theirs, steps, tolerance)
    fooled = net(expected).argmax(1) != y
    assert 0 < fooled.sum() < len(x), "an eps at which some fall"
    if norm == "linf":
        assert apart == 0, f"{apart} pixels of best points differ"
        assert torch.equal(found, expected)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    halved = ours[-1]["step_size"] < 2 * eps
    assert halved.any(), "some checks must have been at work"


@pytest.mark.parametrize("steps", [10, 20, 100])
@pytest.mark.parametrize(("norm", "eps", "tolerance"), CASES)
def test_apgd_t_is_torchattacks_step_by_step(
    double: tuple[nn.Module, Tensor, Tensor],
    torchattacks: Any,
    ours: History,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    eps: float,
    tolerance: float,
    steps: int,
) -> None:
    net, x, y = double
    same_draws(monkeypatch)
    if norm == "l2":
        # torchattacks steps all samples by the step size of the first: alone it is its own.
        x, y = x[:1], y[:1]
    peer = torchattacks.APGDT(net, norm=norm.capitalize(), eps=eps, steps=steps, n_classes=5)
    theirs, starts = watch(peer)
    expected = peer(x, y)
    found = APGDT(net, eps=eps, norm=norm, steps=steps)(x, y, start=starts[0])
    assert len(starts) == 4, "runs towards each other class"
    apart = compare(ours, theirs, steps, tolerance)
    if norm == "linf":
        assert apart == 0, f"{apart} pixels of best points differ"
        assert torch.equal(found, expected)
        assert 0 < (net(expected).argmax(1) != y).sum() < len(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_the_point_of_highest_loss_is_torchattacks(
    double: tuple[nn.Module, Tensor, Tensor], torchattacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x, y = double
    y = torch.where(torch.arange(12) % 4 == 0, (y + 1) % 5, y)  # some are misclassified from the first
    same_draws(monkeypatch)
    peer = torchattacks.APGD(net, eps=0.008, steps=20)
    _, starts = watch(peer)
    highest, expected = peer.perturb(x, y, best_loss=True)
    found = APGD(net, eps=0.008, steps=20, returns="max_loss")(x, y, start=starts[0])
    assert torch.equal(found, expected)
    assert torch.equal(nn.functional.cross_entropy(net(found), y, reduction="none"), highest)
    fooled = APGD(net, eps=0.008, steps=20)(x, y, start=starts[0])
    assert torch.equal(fooled, peer(x, y))
    assert torch.equal(fooled[::4], x[::4])
    assert not torch.equal(fooled, found)


def closed_form() -> Any:
    spec = importlib.util.spec_from_file_location("closed_form", RECORDED / "closed_form.py")
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    return formulas


def recorded() -> list[dict[str, Any]]:
    return json.loads((RECORDED / "apgd.json").read_text())["cases"]


@pytest.mark.parametrize(
    "case", recorded(), ids=lambda case: "-".join(str(case[name]) for name in ("norm", "loss", "steps"))
)
def test_apgd_is_autoattack_step_by_step(ours: History, case: dict[str, Any]) -> None:
    """What the AutoAttack package alone has: APGD under l1, and targeted APGD under l2 for several samples.

    recorded/record.py ran the package at the commit that apgd.json names, in float64 but for the step sizes and
    sparsities of l1, on the network and from the starts that recorded/closed_form.py writes as formulas; no seed is
    left in it. Values were rounded to nine digits. Each row is the state after a step, but for the last one of a run or
    ball.
    """
    formulas = closed_form()
    net, (x, y), eps = formulas.network(), formulas.images(), case["eps"]
    more = {"eps": eps, "norm": case["norm"].lower(), "steps": case["steps"]}
    targeted = case["loss"] == "targeted"
    attack: Attack = APGDT(net, **more) if targeted else APGD(net, **more, loss=case["loss"])
    if case["norm"] == "L1":
        point = formulas.start(x, eps)
    else:
        t = torch.sin(torch.arange(36.0, dtype=torch.float64)).reshape(1, 1, 6, 6)
        point = (x + eps * t / t.square().sum().sqrt()).clamp(0, 1)
    found = attack(x, y, start=point)

    lengths = [n for _ in range(9) for _, n in module.phases(case["steps"], more["norm"])]
    last, ends = 0, set()
    for n in lengths:
        last += n
        ends.add(last - 1)
    mine = [row for number, row in enumerate(ours) if number not in ends]
    assert len(mine) == len(case["history"]) > 0
    for number, (row, other) in enumerate(zip(mine, case["history"], strict=True)):
        for name, values in other.items():
            expected = torch.tensor(values, dtype=torch.float64)
            assert torch.allclose(row[name], expected, rtol=1e-6, atol=1e-6), (number, name)
    assert ((net(found).argmax(1) == y).tolist()) == case["robust"]
    assert 0 < sum(case["robust"]) < len(x)
    moved = (found - x).flatten(1).square().sum(1)
    assert torch.allclose(moved, torch.tensor(case["moved"], dtype=torch.float64), rtol=1e-5, atol=1e-8)
