"""C&W l2: the same points as published implementations, the nearest image where that is known, and binary images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import CarliniWagner

Visits = Callable[..., list[Tensor]]


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    net = make_net(torch.float64).eval()
    # Gaps between logits of about one, and more than one class that wins.
    net[-1].weight.data *= 20
    some = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    net[-1].bias.data -= net(some).mean(0).detach()
    return net


@pytest.fixture
def batch(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x, net(x).argmax(1)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def lengths(x_adv: Tensor, x: Tensor) -> Tensor:
    return (x_adv - x).flatten(1).norm(dim=1)


@pytest.fixture
def against_foolbox(visits: Visits) -> Callable[..., tuple[Any, ...]]:
    foolbox = pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")

    def run(
        net: nn.Module, x: Tensor, y: Tensor, *, targeted: bool = False, **settings: Any
    ) -> tuple[Any, ...]:
        theirs = foolbox.attacks.L2CarliniWagnerAttack(
            steps=settings["steps"],
            stepsize=settings["step_size"],
            binary_search_steps=settings["search_steps"],
            initial_const=settings["c"],
            confidence=settings.get("confidence", 0.0),
            abort_early=settings["abort_early"],
        )
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        goal = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
        results: list[Tensor] = []
        expected = visits(net, lambda: results.append(theirs.run(model, x, goal(y))))
        ours = CarliniWagner(net, targeted=targeted, **settings)
        seen = visits(net, lambda: results.append(ours(x, y)))
        return seen, expected, results[1], results[0]

    return run


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_point_is_foolboxs(
    net: nn.Module, batch: tuple[Tensor, Tensor], against_foolbox: Any, steps: int, targeted: bool
) -> None:
    x, y = batch
    y = (y + 1) % 5 if targeted else y
    seen, expected, ours, theirs = against_foolbox(
        net, x, y, targeted=targeted, steps=steps, step_size=0.05, search_steps=3, c=5.0, abort_early=False
    )
    assert len(seen) == len(expected) >= steps
    assert all(close(a, b) for a, b in zip(seen, expected, strict=True))
    found = theirs.flatten(1).any(1)  # Foolbox returns black images where it finds none
    assert close(ours[found], theirs[found])
    assert torch.equal(ours[~found], x[~found])
    assert found.any() == (steps > 1)


def test_the_searchs_constants_are_foolboxs(
    net: nn.Module, batch: tuple[Tensor, Tensor], against_foolbox: Any
) -> None:
    # From a constant that finds nothing, up by tens, then between its bounds; ten searches repeat the last one.
    seen, expected, ours, theirs = against_foolbox(
        net, *batch, steps=15, step_size=0.05, search_steps=10, c=1e-3, abort_early=False
    )
    assert len(seen) == len(expected)
    assert all(close(a, b) for a, b in zip(seen, expected, strict=True))
    assert close(ours, theirs)


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_a_sample_stops_as_foolbox_stops_a_batch_of_one(
    net: nn.Module, batch: tuple[Tensor, Tensor], against_foolbox: Any, confidence: float
) -> None:
    x, y = batch
    settings = {"steps": 95, "step_size": 0.1, "search_steps": 4, "c": 1.0, "confidence": confidence}
    together = CarliniWagner(net, abort_early=True, **settings)(x, y)
    shorter = 0
    for row in range(len(x)):
        one = slice(row, row + 1)
        seen, expected, ours, theirs = against_foolbox(net, x[one], y[one], abort_early=True, **settings)
        shorter += len(expected) < 4 * 95
        # Foolbox leaves at the first step of a block, here the rest of that block is run and not recorded.
        assert close(seen[0], expected[0])
        assert close(ours, theirs)
        assert close(together[one], theirs)
    assert shorter, "some must have stopped"


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("targeted", [False, True])
def test_without_a_search_every_point_is_torchattacks(
    net: nn.Module, batch: tuple[Tensor, Tensor], visits: Visits, steps: int, targeted: bool
) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")
    x, y = batch
    # Logits above zero: torchattacks takes the larger of a logit and zero.
    net[-1].bias.data += 20
    y = (y + 1) % 5 if targeted else y
    attack = torchattacks.CW(net, c=1, kappa=0, steps=steps, lr=0.002)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    results: list[Tensor] = []
    expected = visits(net, lambda: results.append(attack(x, y)))
    ours = CarliniWagner(
        net, search_steps=1, c=1, steps=steps, step_size=0.002, abort_early=False, targeted=targeted
    )
    seen = visits(net, lambda: results.append(ours(x, y)))
    assert len(seen) == len(expected) == steps
    assert all(close(a, b) for a, b in zip(seen, expected, strict=True))
    assert close(results[1], results[0].double())


class Halves(nn.Module):
    """Class 1 on one side of a hyperplane, class 0 on the other, two more that never win."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        size = torch.Size(dims).numel()
        self.register_buffer("weight", torch.ones(size, dtype=torch.float64) / size)

    def side(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight - 0.5

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        low = torch.full_like(side, -1)
        return torch.stack([-side, side, low, 2 * low], dim=1)

    def distance(self, x: Tensor) -> Tensor:
        return self.side(x).abs() / self.weight.norm()


@pytest.mark.parametrize("dims", [(8,), (4, 6), (5, 7, 7)])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_nearest_image_of_a_linear_model_is_found(dims: tuple[int, ...], targeted: bool) -> None:
    model = Halves(dims)
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(5, *dims, generator=generator, dtype=torch.float64) * 0.03 + 0.75).clamp(0, 1)
    y = torch.ones(5, dtype=torch.int64)
    attack = CarliniWagner(model, steps=60, step_size=0.05, c=0.01, targeted=targeted)
    x_adv = attack(x, 1 - y if targeted else y)
    assert (model(x_adv).argmax(1) == 0).all()
    ratio = lengths(x_adv, x) / model.distance(x)
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio < 1.05).all(), ratio


def test_binary_images_are_moved(net: nn.Module) -> None:
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    y = net(x).argmax(1)
    for dtype in (torch.float64, torch.float32):
        model = net.to(dtype)
        x_adv = CarliniWagner(model, steps=200, step_size=0.3, c=1.0, search_steps=5)(x.to(dtype), y)
        assert (model(x_adv).argmax(1) != y).all()
        assert x_adv.amin() >= 0
        assert x_adv.amax() <= 1
        assert lengths(x_adv, x).max() < lengths(1 - x, x).min()


def test_eps_gives_up_what_lies_farther_and_changes_nothing_else(
    net: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    settings = {"steps": 100, "step_size": 0.05, "c": 1.0, "search_steps": 4}
    free = CarliniWagner(net, **settings)(x, y)
    far = lengths(free, x)
    eps = float(far.median())
    held = CarliniWagner(net, eps=eps, **settings)(x, y)
    near = far <= eps
    assert near.any()
    assert not near.all()
    assert torch.equal(held[near], free[near])
    assert torch.equal(held[~near], x[~near])
    each = CarliniWagner(net, eps=far.clone(), **settings)(x, y)
    assert torch.equal(each, free)


def test_confidence_is_had(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    settings = {"steps": 100, "step_size": 0.05, "c": 1.0, "search_steps": 4}
    logits = net(CarliniWagner(net, confidence=0.4, **settings)(x, y))
    own = logits.gather(1, y[:, None])
    assert (logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True) - own > 0.4).all()


def test_samples_that_stopped_are_left_out_of_later_passes(
    net: nn.Module, batch: tuple[Tensor, Tensor], visits: Visits
) -> None:
    x, y = batch
    attack = CarliniWagner(net, steps=100, step_size=0.1, c=1.0, search_steps=3)
    sizes = {len(images) for images in visits(net, lambda: attack(x, y))}
    assert len(sizes) > 1
    assert attack.report.samples == len(x)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"steps": 0}, "steps"),
        ({"search_steps": 0}, "search_steps"),
        ({"c": 0}, "c is 0"),
        ({"step_size": -1}, "step_size"),
        ({"confidence": -1}, "confidence"),
        ({"norm": "linf"}, "norm"),
        ({"eps": -1}, "eps"),
    ],
)
def test_settings_out_of_range_are_named(net: nn.Module, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        CarliniWagner(net, **settings)
