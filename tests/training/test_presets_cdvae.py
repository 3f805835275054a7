"""CD-VAE's presets, against the numbers of the paper and its code written out once more."""

from __future__ import annotations

import pytest

from robustfast.models import NETWORKS
from robustfast.training.config import TrainConfig
from robustfast.training.presets import PRESETS, SYSTEMS

FAMILIES = ("digits", "mnist", "cifar10", "rimagenet")
METHODS = (
    "cdvae",
    "cdvae-g",
    "cdvae-x",
    "cdvae-r",
    "cdvae-adv",
    "cdvae-hgd",
    "cdvae-ape-gan",
    "cdvae-at",
    "cdvae-trades",
)


def preset(family: str, method: str) -> TrainConfig:
    return PRESETS[f"{family}-{method}"]


def test_names() -> None:
    names = {f"{family}-{method}" for family in FAMILIES for method in METHODS}
    assert set(SYSTEMS["cdvae"].presets()) == names


@pytest.mark.parametrize(("family", "epochs"), [("cifar10", 300), ("rimagenet", 60)])
def test_the_auto_encoder_is_trained_as_in_the_papers_code(family: str, epochs: int) -> None:
    config = preset(family, "cdvae")
    assert (config.epochs, config.batch_size, config.optimizer) == (epochs, 256, "adamw")
    assert (config.lr, config.betas, config.weight_decay) == (1e-3, (0.9, 0.999), 1e-6)
    # 1e-3 to 2e-4, once.
    assert (config.schedule, config.final_lr) == ("cosine", 0.2)
    assert config.augment
    assert config.rand_augment == (family == "cifar10")
    objective = config.objective
    assert (objective.gamma, objective.curriculum, objective.mixup) == (2.0, True, True)
    # The codebook's losses carry their weights themselves.
    assert objective.beta == (0.2 if family == "cifar10" else 1.0)
    assert (config.attack.eps, config.attack.steps) == (8 / 255, 10)
    assert config.attack.step_size == pytest.approx(8 / 255 / 10**0.5)


def test_the_networks_and_backbones() -> None:
    vae = {"digits": "digits_vae", "mnist": "mnist_vae", "cifar10": "cifar_vae", "rimagenet": "vq_vae"}
    ways = {"cdvae": "n", "cdvae-g": "r", "cdvae-x": "s", "cdvae-r": "n", "cdvae-adv": "rn"}
    for family in FAMILIES:
        for method, letters in ways.items():
            assert preset(family, method).network == f"{vae[family]}_{letters}"
        assert all(preset(family, method).network in NETWORKS for method in METHODS)
    assert {preset("cifar10", method).model for method in METHODS} == {"wide_resnet28_10_dropout"}
    assert {preset("rimagenet", method).model for method in METHODS} == {"resnet50"}
    assert preset("rimagenet", "cdvae").image_size == 224


@pytest.mark.parametrize("family", ["cifar10", "rimagenet"])
@pytest.mark.parametrize(("method", "part"), [("cdvae-g", "g"), ("cdvae-x", "x"), ("cdvae-r", "r")])
def test_classifiers_have_the_usual_recipe(family: str, method: str, part: str) -> None:
    config = preset(family, method)
    assert config.objective.part == part
    assert (config.optimizer, config.lr, config.weight_decay, config.epochs) == ("sgd", 0.1, 5e-4, 200)
    assert (config.schedule, config.final_lr, config.augment, config.rand_augment) == (
        "cosine",
        0.0,
        True,
        False,
    )


def test_hardening_is_that_of_the_papers_code() -> None:
    config = preset("cifar10", "cdvae-adv")
    assert (config.optimizer, config.momentum, config.lr, config.weight_decay) == ("sgd", 0.9, 1.0, 2e-4)
    assert (config.epochs, config.batch_size, config.clip_value, config.warmup) == (150, 100, 1.0, 5)
    assert config.milestones == (30, 60, 80, 90, 120)
    assert config.augment
    assert config.rand_augment
    assert config.objective.beta == 0.01


def test_hardening_weighs_the_losses_of_a_codebook_as_the_clean_training_does() -> None:
    clean, hardened = (preset("rimagenet", method).objective for method in ("cdvae", "cdvae-adv"))
    assert hardened.beta == clean.beta == 1.0


@pytest.mark.parametrize("family", ["digits", "mnist"])
def test_small_presets_train_for_minutes(family: str) -> None:
    config = preset(family, "cdvae")
    assert config.objective.gamma == {"digits": 0.2, "mnist": 2.0}[family]
    assert config.objective.mixup
    assert config.objective.curriculum
    images = {"digits": 1438, "mnist": 60000}[family]
    # Less than two minutes of one core at 1,000 images a second.
    assert config.epochs * images <= 120_000
