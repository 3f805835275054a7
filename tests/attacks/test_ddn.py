"""DDN: Foolbox's points, the nearest image where that is known, and gradients that say nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import DDN

Batch = tuple[Tensor, Tensor]
Visits = Callable[..., list[Tensor]]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net(torch.float64).eval()


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, net(x).argmax(1)


def lengths(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_point_is_foolboxs(
    net: nn.Module,
    batch: Batch,
    visits: Visits,
    steps: int,
    targeted: bool,
) -> None:
    foolbox = pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")
    x, y = batch
    y = (y + 1) % 5 if targeted else y
    # Foolbox keeps 1 - gamma and 1 + gamma in float32: here they are exact.
    theirs = foolbox.attacks.DDNAttack(steps=steps, init_epsilon=0.7, gamma=0.125)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    goal = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    results: list[Tensor] = []
    expected = visits(net, lambda: results.append(theirs.run(model, x, goal(y))))
    ours = DDN(net, steps=steps, init_eps=0.7, gamma=0.125, targeted=targeted)
    seen = visits(net, lambda: results.append(ours(x, y)))
    assert len(seen) == len(expected) == steps
    for mine, published in zip(seen, expected, strict=True):
        assert torch.allclose(mine, published, rtol=0, atol=1e-5)
    assert torch.allclose(results[1], results[0], rtol=0, atol=1e-5)
    if steps == 100:
        assert (ours._fooled(net(results[1]), y)).all()


class Halves(nn.Module):
    """Class 1 on one side of a hyperplane, class 0 on the other."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.flatten(1).mean(1) - 0.5
        return torch.stack([-side, side, side * 0 - 1], dim=1)


@pytest.mark.parametrize("dims", [(8,), (4, 6), (5, 7, 7)])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_nearest_image_of_a_linear_model_is_found(dims: tuple[int, ...], targeted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(5, *dims, generator=generator, dtype=torch.float64) * 0.03 + 0.75).clamp(0, 1)
    y = torch.ones(5, dtype=torch.int64)
    x_adv = DDN(Halves(), steps=50, targeted=targeted)(x, 1 - y if targeted else y)
    assert (Halves()(x_adv).argmax(1) == 0).all()
    size = torch.Size(dims).numel()
    ratio = lengths(x_adv, x) / ((x.flatten(1).mean(1) - 0.5) * size**0.5)
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio < 1.1).all(), ratio


def test_eps_gives_up_what_lies_farther_and_changes_nothing_else(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    free = DDN(net)(x, y)
    far = lengths(free, x)
    held = DDN(net, eps=float(far.median()))(x, y)
    near = far <= far.median()
    assert torch.equal(held[near], free[near])
    assert torch.equal(held[~near], x[~near])
    assert not near.all()


class Dead(nn.Module):
    """No slope for a while around x: the gradient is zero until a point is far enough away."""

    def forward(self, x: Tensor) -> Tensor:
        away = torch.relu((x - 0.5).flatten(1).norm(dim=1) - 0.3)
        return torch.stack([away * 0 + 0.1, away], dim=1)


def test_a_dead_gradient_is_left_by_a_direction_of_the_samples_own() -> None:
    x = torch.full((4, 1, 6, 6), 0.5, dtype=torch.float64)
    y, index = torch.zeros(4, dtype=torch.int64), torch.tensor([3, 1, 4, 15])
    attack = DDN(Dead(), seed=7)
    x_adv = attack(x, y, index)
    assert attack.report.zero_gradient == 4
    assert (Dead()(x_adv).argmax(1) == 1).all()
    assert torch.equal(DDN(Dead(), seed=7)(x[1:2], y[1:2], index[1:2]), x_adv[1:2])
    assert not torch.equal(x_adv[0] - x[0], x_adv[1] - x[1])
    assert not torch.equal(DDN(Dead(), seed=8)(x, y, index), x_adv)


@pytest.mark.parametrize(
    ("settings", "names"), [({"steps": 0}, "steps"), ({"gamma": 1}, "gamma"), ({"init_eps": 0}, "init_eps")]
)
def test_settings_out_of_range_are_named(net: nn.Module, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        DDN(net, **settings)
