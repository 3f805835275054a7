"""AFD's presets, against the paper's numbers written out once more."""

from __future__ import annotations

import pytest

from robustfast.models import MODELS
from robustfast.training.config import TrainConfig
from robustfast.training.presets import PRESETS, SYSTEMS

METHODS = ("nt", "at", "trades", "match", "dcgan", "wgan")
FAMILIES = ("digits-afd", "mnist-afd", "cifar10-rn18-afd", "cifar100-rn18-afd", "tiny-rn18-afd")


def preset(family: str, method: str) -> TrainConfig:
    return PRESETS[f"{family}-{method}"]


def test_names() -> None:
    assert set(SYSTEMS["afd"].presets()) == {
        f"{family}-{method}" for family in FAMILIES for method in METHODS
    }


@pytest.mark.parametrize(
    ("family", "dataset", "model", "epochs", "milestones", "augment", "eps", "steps"),
    [
        ("mnist-afd", "mnist", "narrow_resnet", 100, (50, 80), False, 0.3, 40),
        ("cifar10-rn18-afd", "cifar10", "resnet18", 300, (150, 250), True, 8 / 255, 20),
        ("cifar100-rn18-afd", "cifar100", "resnet18", 300, (150, 250), True, 8 / 255, 20),
        ("tiny-rn18-afd", "tiny_imagenet", "resnet18", 500, (300, 450), True, 0.016, 20),
    ],
)
@pytest.mark.parametrize("method", ["dcgan", "wgan"])
def test_afds_own_numbers(
    family: str,
    dataset: str,
    model: str,
    epochs: int,
    milestones: tuple[int, ...],
    augment: bool,
    eps: float,
    steps: int,
    method: str,
) -> None:
    config = preset(family, method)
    assert (config.method, config.dataset, config.model) == (f"afd_{method}", dataset, model)
    assert (config.epochs, config.milestones, config.schedule) == (epochs, milestones, "multistep")
    assert (config.augment, config.batch_size, config.momentum, config.weight_decay) == (
        augment,
        128,
        0.9,
        1e-4,
    )
    assert (config.attack.norm, config.attack.eps, config.attack.steps) == ("linf", eps, steps)
    # Table A1: alpha = beta = 0.1, gamma = 0.5.
    rates = config.lr, config.lr * config.objective.discriminator_lr, config.lr * config.objective.encoder_lr
    assert rates == (0.1, 0.1, 0.5)
    assert config.objective.discriminator == "fc3-pd"
    assert config.objective.returns == "success_only"  # the code's attack
    if method == "wgan":
        assert config.objective.gp == (1.0 if family == "cifar10-rn18-afd" else 0.0)


def test_the_digits_discriminator_sees_all_attacked_images() -> None:
    for method in ("dcgan", "wgan"):
        config = preset("digits-afd", method)
        assert (config.objective.returns, config.attack.eps, config.threads) == ("max_loss", 0.15, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_methods_train_the_same_network(family: str) -> None:
    mine = preset(family, "wgan")
    for method in METHODS:
        config = preset(family, method)
        assert (config.model, config.network, config.dataset) == (mine.model, "unit_norm", mine.dataset)
        assert config.image_size == mine.image_size == (32 if family.startswith("tiny") else None)
        assert config.model in MODELS
    assert preset(family, "nt").method == "st"
    assert (preset(family, "at").method, preset(family, "at").objective.half) == ("at", False)


def test_the_baselines_schedules() -> None:
    assert (preset("mnist-afd", "nt").epochs, preset("mnist-afd", "nt").milestones) == (20, ())
    assert (preset("mnist-afd", "at").epochs, preset("mnist-afd", "at").milestones) == (90, (40, 80))
    assert (preset("cifar10-rn18-afd", "at").epochs, preset("cifar10-rn18-afd", "nt").epochs) == (300, 300)
    cifar, mnist = preset("cifar10-rn18-afd", "trades"), preset("mnist-afd", "trades")
    assert (cifar.epochs, cifar.milestones, cifar.lr, cifar.weight_decay) == (76, (74,), 0.1, 2e-4)
    assert (cifar.attack.eps, cifar.attack.step_size, cifar.attack.steps) == (0.031, 0.007, 10)
    assert (mnist.epochs, mnist.milestones, mnist.lr, mnist.weight_decay) == (100, (54,), 0.01, 0.0)
    assert (mnist.attack.eps, mnist.attack.step_size, mnist.attack.steps) == (0.3, 0.01, 40)
    assert (cifar.objective.beta, mnist.objective.beta) == (6.0, 1.0)
