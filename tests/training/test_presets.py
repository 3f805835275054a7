"""Presets, against the papers' numbers written out once more."""

from __future__ import annotations

import pytest

from robustfast.models import MODELS
from robustfast.objectives import OBJECTIVES
from robustfast.training.presets import DEFAULT, PRESETS, SYSTEMS

METHODS = tuple(SYSTEMS["aat"].methods)


def test_names() -> None:
    families = ("digits", "mnist", "cifar10-prn18", "cifar10-wrn34")
    assert set(PRESETS) >= {f"{family}-{method}" for family in families for method in METHODS}
    assert DEFAULT == "digits-aatpp"
    assert all(name == config.preset for name, config in PRESETS.items())
    assert len(PRESETS) == sum(len(system.presets()) for system in SYSTEMS.values())  # no name stands for two


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("family", "model", "lr", "weight_decay", "epochs", "milestones"),
    [
        ("cifar10-wrn34", "wide_resnet34_10", 0.1, 2e-4, 105, (75, 90, 100)),
        ("cifar10-prn18", "preact_resnet18", 0.05, 5e-4, 105, (75, 90, 100)),
        ("mnist", "small_cnn", 0.1, 5e-4, 56, (50, 55)),
    ],
)
def test_the_papers_optimisation(
    family: str,
    model: str,
    lr: float,
    weight_decay: float,
    epochs: int,
    milestones: tuple[int, ...],
    method: str,
) -> None:
    config = PRESETS[f"{family}-{method}"]
    assert (config.model, config.lr, config.weight_decay) == (model, lr, weight_decay)
    assert (config.epochs, config.milestones, config.schedule) == (epochs, milestones, "multistep")
    assert (config.batch_size, config.momentum, config.precision) == (256, 0.9, "fp32")
    assert config.augment == family.startswith("cifar10")


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_attacks(method: str) -> None:
    cifar = PRESETS[f"cifar10-prn18-{method}"].attack
    assert (cifar.norm, cifar.eps, cifar.step_size, cifar.steps) == ("linf", 8 / 255, 2 / 255, 10)
    mnist = PRESETS[f"mnist-{method}"].attack
    assert (mnist.norm, mnist.eps, mnist.step_size, mnist.steps) == ("linf", 0.3, 0.01, 5)


def test_every_preset_names_what_exists() -> None:
    for config in PRESETS.values():
        assert config.model in MODELS
        assert isinstance(config.objective, OBJECTIVES[config.method].Config)
