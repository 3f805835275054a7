"""DeepFool: Foolbox's and torchattacks' points, and boundaries whose distance is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import DeepFool

Batch = tuple[Tensor, Tensor]
Visits = Callable[..., list[Tensor]]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(torch.float64).eval()


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 5  # one that needs no step
    return x, y


@pytest.fixture
def against_foolbox(visits: Visits) -> Callable[..., Any]:
    foolbox = pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")

    def run(net: nn.Module, x: Tensor, y: Tensor, norm: str, **settings: Any) -> tuple[Any, ...]:
        kind = "L2DeepFoolAttack" if norm == "l2" else "LinfDeepFoolAttack"
        theirs = getattr(foolbox.attacks, kind)(**settings)
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        results: list[Tensor] = []
        expected = visits(net, lambda: results.append(theirs.run(model, x, y)))
        ours = DeepFool(net, norm=norm, keep_failed=True, **settings)
        visits(net, lambda: results.append(ours(x, y)))
        return expected, results[1], results[0]

    return run


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("candidates", [10, 3])
def test_after_any_number_of_steps_the_images_are_foolboxs(
    net: nn.Module, batch: Batch, against_foolbox: Any, norm: str, steps: int, candidates: int
) -> None:
    x, y = batch
    expected, ours, theirs = against_foolbox(net, x, y, norm, steps=steps, candidates=candidates)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(ours[0], x[0])
    assert not torch.allclose(ours[1:], x[1:], rtol=0, atol=1e-3)
    if steps == 20:
        assert 1 < len(expected) < 20, "all must have crossed"
        assert (net(ours).argmax(1) != y).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_that_barely_move_are_foolboxs_too(
    net: nn.Module, batch: Batch, against_foolbox: Any, norm: str
) -> None:
    # Without overshoot a boundary is approached in many steps: the sum of steps matters.
    expected, ours, theirs = against_foolbox(net, *batch, norm, steps=20, overshoot=0.0)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert len(expected) > 2


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_after_any_number_of_steps_the_images_are_torchattacks(
    net: nn.Module, batch: Batch, steps: int
) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")
    theirs = torchattacks.DeepFool(net, steps=steps, overshoot=0.02)(*batch)
    ours = DeepFool(net, steps=steps, candidates=None, cumulative=False, nudge=0, keep_failed=True)(*batch)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, batch[0], rtol=0, atol=1e-3)


def linear(classes: int = 6, size: int = 48, seed: int = 0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, classes))
    generator = torch.Generator().manual_seed(seed)
    net[1].weight.data = torch.randn(classes, size, generator=generator) * 0.1
    net[1].bias.data = torch.zeros(classes)
    return net.double()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_is_crossed_in_one_step_at_its_nearest_boundary(norm: str, dual: int) -> None:
    net = linear()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2 + 0.4
    y = net(x).argmax(1)
    x_adv = DeepFool(net, norm=norm, nudge=0, overshoot=0.02, steps=1)(x, y)
    assert (net(x_adv).argmax(1) != y).all()
    weight, logits = net[1].weight, net(x)
    gap = logits.gather(1, y[:, None]) - logits
    slope = (weight[y][:, None] - weight[None]).norm(p=dual, dim=2)
    nearest = torch.where(slope > 0, gap / slope, torch.inf).amin(1)
    far = (x_adv - x).flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)
    assert torch.allclose(far, 1.02 * nearest, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_targeted_attack_arrives_at_its_class(norm: str) -> None:
    net = linear()
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2 + 0.4
    wanted = (net(x).argmax(1) + 2) % 6
    x_adv = DeepFool(net, norm=norm, targeted=True)(x, wanted)
    assert (net(x_adv).argmax(1) == wanted).all()


def test_who_is_not_crossed_comes_back_as_x_unless_asked_for(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    settings = {"steps": 1, "overshoot": 0.0, "nudge": 0.0}
    last = DeepFool(net, keep_failed=True, **settings)(x, y)
    failed = net(last).argmax(1) == y
    assert failed.any()
    found = DeepFool(net, **settings)(x, y)
    assert torch.equal(found[failed], x[failed])
    assert torch.equal(found[~failed], last[~failed])


def test_eps_gives_up_what_lies_farther_and_changes_nothing_else(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    free = DeepFool(net, norm="linf")(x, y)
    far = (free - x).flatten(1).abs().amax(1)
    held = DeepFool(net, norm="linf", eps=float(far.median()))(x, y)
    near = far <= far.median()
    assert torch.equal(held[near], free[near])
    assert torch.equal(held[~near], x[~near])
    assert not near.all()


def test_one_forward_pass_serves_all_classes(net: nn.Module, batch: Batch) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    net.register_forward_pre_hook(count)
    DeepFool(net, steps=4, overshoot=0.0, nudge=0.0)(*batch)
    assert passes <= 1 + 4 + 1, "one for the classes, one a step, one to see who was fooled"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"steps": 0}, "steps"),
        ({"candidates": 1}, "candidates"),
        ({"overshoot": -1}, "overshoot"),
        ({"norm": "l1"}, "norm"),
    ],
)
def test_settings_out_of_range_are_named(net: nn.Module, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        DeepFool(net, **settings)
