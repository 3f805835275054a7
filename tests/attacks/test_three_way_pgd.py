from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGD, AttackReport, ThreeWayPGD
from robustfast.models import ThreeWay
from robustfast.seeds import derive

Batch = tuple[Tensor, Tensor]
EPS = {"linf": 0.1, "l2": 0.5, "l1": 3.0}


class Backbone(nn.Module):
    """Images [B, 1, 4, 4] -> [B, 6]: one convolution, so that passes are easy to count."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def model() -> ThreeWay:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ThreeWay(Backbone, num_classes=4)
        model.ways(torch.rand(16, 1, 4, 4))
        # An even start has gradients near zero; a trained model has not.
        model.head[2].weight.data *= 5
        return model.double()


@pytest.fixture
def images() -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (6,), generator=generator)


@pytest.mark.parametrize("ways", ["srn", "rn", "sn", "rs", "n", "s"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_separate_is_bit_equal_to_one_attack_per_way(
    model: ThreeWay, images: Batch, ways: str, norm: str
) -> None:
    settings = {"norm": norm, "eps": EPS[norm], "step_size": EPS[norm] / 4, "steps": 5}
    index = torch.arange(6) + 100
    found = ThreeWayPGD(model, ways, batched=False, seed=7, **settings)(*images, index, epoch=2)
    assert list(found) == list(ways)
    for way in ways:
        alone = PGD(model.way(way), seed=derive(7, way), **settings)(*images, index, epoch=2)
        assert torch.equal(found[way], alone)


@pytest.mark.parametrize("ways", ["srn", "rn", "sn", "rs", "n", "s"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_batched_equals_separate(model: ThreeWay, images: Batch, ways: str, norm: str, loss: str) -> None:
    x, y = images
    target = (
        torch.softmax(torch.arange(24.0, dtype=torch.float64).reshape(6, 4).sin(), 1) if loss == "kl" else y
    )
    settings = {"norm": norm, "eps": EPS[norm], "step_size": EPS[norm] / 4, "loss": loss, "seed": 7}
    together = ThreeWayPGD(model, ways, batched=True, **settings)(x, target, torch.arange(6), epoch=1)
    apart = ThreeWayPGD(model, ways, batched=False, **settings)(x, target, torch.arange(6), epoch=1)
    assert list(together) == list(apart) == list(ways)
    for way in ways:
        assert torch.allclose(together[way], apart[way], rtol=0, atol=1e-12), way
        assert not torch.equal(together[way], x)


def test_the_other_settings_reach_both_routes(model: ThreeWay, images: Batch) -> None:
    eps = torch.linspace(0, 0.2, 6, dtype=torch.float64)
    settings = {"targeted": True, "restarts": 3, "loss": "margin", "steps": 3}
    together, apart = (
        ThreeWayPGD(model, "rsn", batched=batched, **settings)(*images, eps=eps, step_size=0.03)
        for batched in (True, False)
    )
    for way in "srn":
        assert torch.allclose(together[way], apart[way], rtol=0, atol=1e-12), way
        assert torch.equal(together[way][0], images[0][0])


def test_the_ways_start_at_different_points(model: ThreeWay, images: Batch) -> None:
    found = ThreeWayPGD(model, steps=1, step_size=0.0)(*images)
    assert not torch.equal(found["s"], found["r"])
    assert not torch.equal(found["r"], found["n"])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    ("ways", "images_r", "images_n"), [("srn", 12, 12), ("r", 6, 0), ("n", 0, 6), ("s", 6, 6), ("rn", 6, 6)]
)
def test_each_way_runs_the_encoders_it_needs(
    model: ThreeWay, images: Batch, batched: bool, ways: str, images_r: int, images_n: int
) -> None:
    seen: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor]) -> None:
            seen[name] += len(args[0])
            calls[name] += 1

        return hook

    model.encoder_r.register_forward_pre_hook(count("r"))
    model.encoder_n.register_forward_pre_hook(count("n"))
    ThreeWayPGD(model, ways, batched=batched, steps=10)(*images)
    assert (seen["r"], seen["n"]) == (10 * images_r, 10 * images_n)
    if batched:
        assert set(calls.values()) == {10}, "one call per encoder and step"


@pytest.mark.parametrize("batched", [True, False])
def test_no_weight_gradient_and_no_wasted_pass(
    model: ThreeWay, images: Batch, record: type[Any], batched: bool
) -> None:
    attack = ThreeWayPGD(model, batched=batched, steps=10)
    with record() as calls:
        attack(*images)
    backward = calls.arguments("aten::convolution_backward")
    assert all(args[-1] == [True, False, False] for args in backward)
    # AAT++: four encoder passes forward and four backward per step, in passes over one batch: 80 for ten steps.
    passes = sum(len(args[0]) for args in backward) / 6
    assert passes == 40


@pytest.mark.parametrize("batched", [True, False])
def test_the_model_is_left_as_it_was(model: ThreeWay, images: Batch, batched: bool) -> None:
    model.encoder_n.eval()
    modes = [part.training for part in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ThreeWayPGD(model, batched=batched)(*images)
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("batched", [True, False])
def test_the_loop_never_waits_for_the_device(
    model: ThreeWay, images: Batch, record: type[Any], batched: bool
) -> None:
    attack = ThreeWayPGD(model, "r" if not batched else "srn", batched=batched)
    with record() as calls:
        attack(*images)
    names = [name for name, _ in calls.calls]
    loop = names[names.index("aten::convolution") : max(i for i, n in enumerate(names) if "pgd_step" in n)]
    assert not [n for n in loop if n in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")]


@pytest.mark.parametrize("batched", [True, False])
def test_channels_last_is_kept(images: Batch, batched: bool) -> None:
    model = ThreeWay("small_cnn", num_classes=3, in_channels=2)
    x = torch.rand(2, 2, 28, 28).contiguous(memory_format=torch.channels_last)
    for x_adv in ThreeWayPGD(model, batched=batched, steps=1)(x, torch.tensor([0, 1])).values():
        assert x_adv.is_contiguous(memory_format=torch.channels_last)
        assert not x_adv.requires_grad


@pytest.mark.parametrize("batched", [True, False])
def test_the_report_of_each_way(model: ThreeWay, images: Batch, batched: bool) -> None:
    model.encoder_n.layers[4].weight.data.zero_()  # encoder n sees nothing any more
    attack = ThreeWayPGD(model, batched=batched)
    with pytest.raises(RuntimeError, match="has not been called yet"):
        _ = attack.report
    attack(*images)
    nothing = AttackReport(0, 0, 6)
    assert attack.report == {"s": nothing, "r": nothing, "n": AttackReport(6, 0, 6)}


@pytest.mark.parametrize("batched", [True, False])
def test_an_empty_batch(model: ThreeWay, batched: bool) -> None:
    x, y = torch.rand(0, 1, 4, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    attack = ThreeWayPGD(model, batched=batched)
    assert {way: len(x_adv) for way, x_adv in attack(x, y).items()} == {"s": 0, "r": 0, "n": 0}
    assert attack.report["n"].samples == 0


def test_batch_statistics_are_never_mixed(model: ThreeWay, images: Batch) -> None:
    attack = ThreeWayPGD(model, batch_norm="batch")
    assert attack.batched is False, "on no device"
    found = attack(*images)
    alone = PGD(model.way("s"), batch_norm="batch", seed=derive(0, "s"))(*images)
    assert torch.equal(found["s"], alone)
    with pytest.raises(ValueError, match="batched=True would mix batch statistics"):
        ThreeWayPGD(model, batched=True, batch_norm="batch")


@pytest.mark.parametrize("ways", ["", "ss", "x", "srnx"])
def test_wrong_ways(model: ThreeWay, ways: str) -> None:
    with pytest.raises(ValueError, match="expected one or more of s, r, n, each once"):
        ThreeWayPGD(model, ways)


def test_wrong_settings(model: ThreeWay, images: Batch) -> None:
    with pytest.raises(ValueError, match="batched is 'yes'"):
        ThreeWayPGD(model, batched="yes")
    with pytest.raises(ValueError, match="eps is 8"):
        ThreeWayPGD(model, eps=8)
    for batched in (True, False):
        with pytest.raises(ValueError, match="y has labels from"):
            ThreeWayPGD(model, batched=batched)(images[0], images[1] + 4)
        with pytest.raises(TypeError, match="x is list"):
            ThreeWayPGD(model, batched=batched)([1.0], images[1])
