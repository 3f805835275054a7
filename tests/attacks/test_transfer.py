from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import ATTACKS, PGD, Transfer
from robustfast.errors import UserError


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(48, 24), nn.Tanh(), nn.Dropout(0.5), nn.Linear(24, 4)
        ).double()


def images(batch: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 4, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (batch,), generator=generator)


def never(x: Tensor) -> Tensor:
    raise AssertionError("a single source needs no answer of the model")


@pytest.mark.parametrize(
    ("attack", "norm", "settings"),
    [
        ("pgd", "linf", {"steps": 4, "restarts": 2}),
        ("pgd", "l2", {"steps": 3, "targeted": True}),
        ("fgsm", "linf", {}),
        ("mim", "linf", {"steps": 4}),
        ("square", "linf", {"queries": 15}),
        ("ddn", "l2", {"steps": 5}),
        ("noise", "l1", {}),
    ],
)
def test_it_is_the_attack_on_the_source_to_the_bit(attack: str, norm: str, settings: dict[str, Any]) -> None:
    source, (x, y) = net(1), images()
    eps = {"linf": 0.1, "l2": 0.5, "l1": 2.0}[norm]
    index = torch.arange(12) + 30
    shared = {"norm": norm, "eps": eps, "seed": 4, **settings}
    transfer = Transfer(never, source=source, attack=attack, **shared)
    direct = ATTACKS[attack](source, **shared)
    assert torch.equal(transfer(x, y, index, epoch=2), direct(x, y, index, epoch=2))
    assert transfer.report == direct.report


def test_it_fools_a_model_that_is_like_its_source_and_the_source_more() -> None:
    source, (x, _) = net(1), images(60)
    model = net(1)
    with torch.no_grad():
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(0)
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for one in (source, model):
        one.eval()
    y = model(x).argmax(1)
    x_adv = Transfer(model, source=source, eps=0.1, steps=10, relative_step=None, step_size=0.02)(x, y)
    fooled = (model(x_adv).argmax(1) != y).double().mean()
    white = PGD(model, eps=0.1, steps=10, step_size=0.02)(x, y)
    noise = ATTACKS["noise"](model, eps=0.1)(x, y)
    assert fooled > (model(noise).argmax(1) != y).double().mean() + 0.2
    assert (model(white).argmax(1) != y).double().mean() >= fooled


def test_of_several_sources_each_sample_keeps_what_is_strongest_on_the_model() -> None:
    model, sources, (x, y) = net(0).eval(), [net(seed) for seed in (1, 2, 3)], images(40)
    found = Transfer(model, source=sources, eps=0.1, steps=3)(x, y)
    each = torch.stack([Transfer(model, source=one, eps=0.1, steps=3)(x, y) for one in sources])
    logits = torch.stack([model(one) for one in each])
    fooled = logits.argmax(2) != y
    loss = torch.stack([nn.functional.cross_entropy(one, y, reduction="none") for one in logits])
    best = (loss + 1000 * fooled).argmax(0)
    assert torch.equal(found, each[best, torch.arange(40)])
    assert best.unique().numel() == 3


def test_modes_and_gradients_of_both_models_are_left_alone() -> None:
    model, source = net(0), net(1)
    Transfer(model, source=[source, net(2)], steps=2)(*images())
    for one in (model, source):
        assert all(part.training for part in one.modules())
        assert all(p.grad is None and p.requires_grad for p in one.parameters())


def test_the_source_holds_the_labels_to_its_classes() -> None:
    x, y = images()
    with pytest.raises(ValueError, match="y has labels from 0 to 7, expected 0 to 3"):
        Transfer(never, source=net(1), steps=1)(x, y.clamp(max=0).index_fill(0, torch.tensor([3]), 7))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, ValueError, "source is None, expected a model"),
        ({"source": []}, ValueError, "expected a model, or a sequence"),
        ({"source": "resnet"}, ValueError, "source is 'resnet'"),
        ({"source": net(1), "attack": "pdg"}, UserError, "unknown attack 'pdg'; did you mean 'pgd'"),
        ({"source": net(1), "attack": "transfer"}, ValueError, "expected one that runs against the source"),
        ({"source": net(1), "attack": "ddn", "norm": "linf"}, ValueError, "norm is 'linf'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Transfer(net(0), **settings)
