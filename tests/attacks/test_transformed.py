"""What the attacks on a flow, a colour map and JPEG coefficients share: starts, restarts, stopping, averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import JPEG, ReColorAdv, StAdv

Batch = tuple[Tensor, Tensor]
Visits = Callable[..., list[Tensor]]
ATTACKS = [
    (StAdv, {"eps": 0.3, "step_size": 0.05}),
    (JPEG, {"eps": 1.0}),
    (ReColorAdv, {"eps": 0.15, "step_size": 0.02, "lattice": (4, 5, 5)}),
]
# Slow enough that some samples are fooled after ten steps and some are not.
SLOW = {
    StAdv: {"step_size": 0.0005},
    JPEG: {"eps": 0.1, "step_size": 0.002},
    ReColorAdv: {"step_size": 0.002},
}
each = pytest.mark.parametrize(("kind", "settings"), ATTACKS, ids=lambda p: getattr(p, "__name__", ""))


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=3), nn.Flatten(), nn.LazyLinear(5)
        ).double()  # fmt: skip
        some = torch.rand(64, 3, 16, 16, dtype=torch.float64)
        net(some)
    net[-1].weight.data *= 20
    net[-1].bias.data -= net(some).mean(0).detach()  # no class leads everywhere
    return net


@pytest.fixture
def batch(net: nn.Module) -> Batch:
    # Four pixels of a colour, which JPEG keeps.
    x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 0.6 + 0.2
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return x, net(x).argmax(1)


@each
def test_fooled_samples_leave_the_passes_and_stay_as_they_were(
    net: nn.Module, batch: Batch, visits: Visits, kind: Any, settings: dict[str, Any]
) -> None:
    x, y = batch
    settings = {**settings, **SLOW[kind]}
    attack = kind(net, steps=35, early_stop=True, **settings)
    seen = visits(net, lambda: attack(x, y))
    x_adv = attack(x, y)
    assert len({len(images) for images in seen}) > 1
    # Each sample is where a shorter attack ends, for the first of 0, 10, 20, 30 steps that fools the model.
    left = torch.ones(len(x), dtype=torch.bool)
    for steps in (0, 10, 20, 30, 35):
        cut = settings if steps else {**settings, "step_size": 0.0}
        shorter = kind(net, steps=max(steps, 1), **cut)(x, y)
        won = net(shorter).argmax(1) != y
        ends = left & (won if steps < 35 else True)
        # Ten steps move pixels by 0.01 and more; rounding, which depends on the batch, grows to 1e-4 under Adam.
        # A step of no length confines ReColorAdv's table once more, which does not leave it quite alone.
        assert torch.allclose(x_adv[ends], shorter[ends], rtol=0, atol=1e-3 if steps else 0.02)
        left &= ~won
    assert not left.all()


@each
def test_restarts_keep_the_strongest_of_each_sample(
    net: nn.Module, batch: Batch, kind: Any, settings: dict[str, Any]
) -> None:
    x, y = batch
    more = {**settings, "steps": 3, "random_start": True, "seed": 5}
    one, three = (kind(net, restarts=n, **more)(x, y) for n in (1, 3))
    attack = kind(net, **more)

    def standing(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(images)
        return logits.argmax(1) != y, attack._per_sample(logits, y)

    (fooled_one, loss_one), (fooled, loss) = standing(one), standing(three)
    assert (fooled >= fooled_one).all()
    assert (loss >= loss_one - 1e-12).all()
    assert (loss > loss_one + 1e-9).any()
    with pytest.raises(ValueError, match="restarts"):
        kind(net, restarts=2, random_start=False)


@each
def test_a_random_start_is_keyed_by_seed_epoch_and_sample(
    net: nn.Module, batch: Batch, kind: Any, settings: dict[str, Any]
) -> None:
    x, y = batch
    index = torch.arange(8) + 100
    still = {**settings, "step_size": 0, "steps": 1, "random_start": True}
    first = kind(net, **still)(x, y, index)
    assert torch.equal(kind(net, **still)(x, y, index), first)
    assert torch.allclose(kind(net, **still)(x[3:5], y[3:5], index[3:5]), first[3:5], rtol=0, atol=1e-12)
    for other in (kind(net, seed=1, **still)(x, y, index), kind(net, **still)(x, y, index, epoch=1)):
        assert not torch.allclose(other, first, atol=1e-6)
    without = kind(net, **{**still, "random_start": False})(x, y, index)
    assert not torch.allclose(without, first, atol=1e-3)


@each
def test_eot_averages_the_gradients_of_a_model_that_draws(
    batch: Batch, net: nn.Module, kind: Any, settings: dict[str, Any]
) -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.net(x) * (3 if self.calls % 2 else -1)

    x, y = batch
    # 3 and -1 average to the network itself.
    settings = {**settings, "random_start": False, "steps": 2, "loss": lambda logits, y: logits[:, 0]}
    expected = kind(net, **settings)(x, y)
    found = kind(Drawing(), eot=2, **settings)(x, y)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6), (found - expected).abs().amax()
    assert not torch.allclose(kind(Drawing(), **settings)(x, y), expected, rtol=0, atol=1e-3)


@each
def test_a_start_image_has_no_meaning_here(
    net: nn.Module, batch: Batch, kind: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="start was given"):
        kind(net, **settings)(*batch, start=batch[0])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"eps": -1}, "eps"),
        ({"eps": float("inf")}, "eps"),
        ({"eps": torch.tensor(0.1)}, "eps"),
        ({"steps": 0}, "steps"),
        ({"step_size": -1}, "step_size"),
        ({"eot": 0}, "eot"),
        ({"restarts": 0}, "restarts"),
        ({"early_stop": True, "loss": "kl"}, "early_stop"),
        ({"smoothing": -1}, "smoothing"),
    ],
)
def test_settings_out_of_range_are_named(net: nn.Module, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        StAdv(net, **settings)
