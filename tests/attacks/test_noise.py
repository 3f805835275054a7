from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustfast.attacks import RandomNoise
from robustfast.ops import random_start

ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
WIDE = (-100.0, 100.0)


def never(x: Tensor) -> Tensor:
    raise AssertionError("noise with one draw asks no model")


def noise(norm: str, law: str, count: int = 2000, n: int = 12, eps: float = 3.0) -> Tensor:
    """Many draws around zero, with no wall in reach."""
    x = torch.zeros(count, n, dtype=torch.float64)
    y = torch.zeros(count, dtype=torch.int64)
    return RandomNoise(never, norm=norm, eps=eps, law=law, bounds=WIDE)(x, y)


@pytest.mark.parametrize("norm", ORDER)
def test_the_ball_is_filled_evenly(norm: str) -> None:
    """The share of a uniform ball within radius r is (r / eps)^n: so its power n is uniform on [0, 1]."""
    d = noise(norm, "ball")
    share = (d.norm(p=ORDER[norm], dim=1) / 3) ** 12
    assert share.max() <= 1
    assert (share.sort().values - torch.linspace(0, 1, 2000, dtype=torch.float64)).abs().max() < 0.045
    assert d.mean(0).abs().max() < 0.15
    expected = random_start(
        torch.zeros_like(d), eps=3.0, norm=norm, bounds=WIDE, seed=RandomNoise(never)._key(0, 0)
    )
    assert torch.equal(d, expected)


@pytest.mark.parametrize("norm", ORDER)
def test_the_sphere_is_its_surface(norm: str) -> None:
    d = noise(norm, "sphere")
    assert d.norm(p=ORDER[norm], dim=1).tolist() == pytest.approx([3.0] * 2000)
    # No direction is favoured: entries average to zero, and their squares to the same.
    squares = d.square().mean(0)
    assert d.mean(0).abs().max() < 0.25
    assert ((squares / squares.mean()).sub(1).abs() < 0.2).all()
    if norm == "linf":
        assert set(d.flatten().tolist()) == {-3.0, 3.0}
    elif norm == "l2":
        # The fourth moment of a coordinate of the sphere is 3 eps^4 / (n (n + 2)).
        assert d.pow(4).mean().item() == pytest.approx(3 * 81 / (12 * 14), rel=0.1)
    else:
        # Shares of a whole by exponential draws: the second moment is 2 eps^2 / (n (n + 1)).
        assert d.square().mean().item() == pytest.approx(2 * 9 / (12 * 13), rel=0.1)


def test_walls_cut_it_off() -> None:
    x = torch.rand(20, 3, 4, 4).round()
    x_adv = RandomNoise(never, eps=0.2, law="sphere")(x, torch.zeros(20, dtype=torch.int64))
    assert x_adv.amin() >= 0
    assert x_adv.amax() <= 1
    assert ((x_adv - x).abs() < 1e-6).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_each_sample_has_a_radius_of_its_own() -> None:
    x = torch.full((3, 5), 0.5)
    eps = torch.tensor([0.0, 0.1, 0.3])
    for law in ("ball", "sphere"):
        d = RandomNoise(never, eps=eps, law=law)(x, torch.zeros(3, dtype=torch.int64)) - x
        assert (d.abs().amax(1) <= eps + 1e-6).all()
        assert (d.abs().amax(1) > eps / 3 - 1e-6).all()


def test_restarts_keep_the_strongest_of_each_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 4, generator=generator, dtype=torch.float64)

    def model(x: Tensor) -> Tensor:
        return x.flatten(1) @ weight

    x = torch.rand(40, 12, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    index = torch.arange(40) + 7
    many = RandomNoise(model, eps=0.3, restarts=6, seed=3)
    found = many(x, y, index)
    draws = [
        random_start(x, eps=0.3, bounds=(0.0, 1.0), seed=many._key(0, restart), index=index)
        for restart in range(6)
    ]
    assert torch.equal(RandomNoise(model, eps=0.3, seed=3)(x, y, index), draws[0])

    def strength(images: Tensor) -> Tensor:
        logits = model(images)
        margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)
        return margin + 1000 * (logits.argmax(1) != y)

    best = torch.stack([strength(draw) for draw in draws]).argmax(0)
    assert torch.equal(found, torch.stack(draws)[best, torch.arange(40)])
    assert best.unique().numel() > 3


def test_targeted_it_keeps_what_comes_closest_to_the_class() -> None:
    weight = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, y = torch.rand(20, 12, dtype=torch.float64), torch.arange(20) % 4

    def margin(images: Tensor) -> Tensor:
        logits = images @ weight
        return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)

    attack = RandomNoise(lambda x: x @ weight, eps=0.3, restarts=5, targeted=True)
    found = margin(attack(x, y))
    draws = [
        margin(random_start(x, eps=0.3, bounds=(0.0, 1.0), seed=attack._key(0, restart)))
        for restart in range(5)
    ]
    assert torch.equal(found, torch.stack(draws).amin(0))


def test_a_draw_of_nan_logits_is_never_the_strongest() -> None:
    x, y = torch.rand(6, 5), torch.zeros(6, dtype=torch.int64)
    first = RandomNoise(never, eps=0.1)(x, y)
    calls = 0

    def model(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # The label wins in every draw; the later draws have no loss.
        return torch.tensor([[1.0, 0.0]]).expand(len(x), 2) * (1 if calls == 1 else torch.nan)

    kept = RandomNoise(model, eps=0.1, restarts=3)(x, y)
    assert calls == 3
    assert torch.equal(kept, first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"law": "cube"}, "law is 'cube', expected 'ball' or 'sphere'"),
        ({"restarts": 0}, "restarts is 0"),
        ({"eps": None}, "eps is None"),
        ({"targeted": True}, "targeted noise with one draw goes nowhere"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomNoise(never, **settings)


def test_a_start_is_refused() -> None:
    x = torch.rand(2, 3)
    with pytest.raises(ValueError, match="start was given"):
        RandomNoise(never)(x, torch.zeros(2, dtype=torch.int64), start=x)
