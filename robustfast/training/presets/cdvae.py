"""CD-VAE's presets: its data sets with its auto-encoder, its classifiers and the baselines of its tables."""

from __future__ import annotations

from typing import Any

from robustfast.attacks.config import AttackConfig
from robustfast.training.presets.system import Method, System

__all__ = ["SYSTEM"]

# The attack of the white-box training, PGD-C: steps of eps / sqrt(steps).
_CIFAR10_ATTACK = AttackConfig(eps=8 / 255, step_size=8 / 255 / 10**0.5, steps=10)

# CD-VAE's paper names few numbers. What is trained with the auto-encoder has those of its code, but for the cosine,
# which falls once over the run: theirs has its length in epochs 50, starts to climb there again and ends on top.
_PIXELS: dict[str, Any] = {
    "epochs": 300,
    "batch_size": 256,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 1e-6,
    "schedule": "cosine",
    "final_lr": 0.2,
    "augment": True,
    "rand_augment": True,
    "attack": _CIFAR10_ATTACK,
    "validate_every": 10,
}

# Of the classifiers the paper gives no recipe: the usual one.
_CLASSIFIER: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 5e-4,
    "final_lr": 0.0,
    "rand_augment": False,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    # Not in the paper: a minute on two cores, all runs together.
    "digits": {
        "dataset": "digits",
        "model": "digits_cnn",
        "epochs": 40,
        "batch_size": 120,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 1e-6,
        "schedule": "cosine",
        "final_lr": 0.2,
        "attack": AttackConfig(eps=0.15, step_size=0.03, steps=10),
        "validate_every": 20,
        "validate_images": 128,
        "threads": 1,
    },
    "mnist": {
        "dataset": "mnist",
        "model": "small_cnn",
        "epochs": 3,
        "batch_size": 128,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "schedule": "cosine",
        "final_lr": 0.2,
        "attack": AttackConfig(eps=0.2, step_size=0.03, steps=10),
        "threads": 1,
    },
    "cifar10": {**_PIXELS, "dataset": "cifar10", "model": "wide_resnet28_10"},
}

_AUTOENCODERS = {"digits": "digits_vae", "mnist": "mnist_vae", "cifar10": "cifar_vae"}

# The ways of the network of each method; the others train a classifier alone.
_WAYS = {"cdvae": "n", "cdvae-g": "r", "cdvae-x": "s", "cdvae-r": "n"}

_METHODS = {
    "cdvae": Method("cdvae"),
    "cdvae-g": Method("cdvae_classifier", {"part": "g"}),
    "cdvae-x": Method("cdvae_classifier", {"part": "x"}),
    "cdvae-r": Method("cdvae_classifier", {"part": "r"}),
    "cdvae-adv": Method("cdvae_adv"),
    "cdvae-hgd": Method("hgd"),
    "cdvae-ape-gan": Method("ape_gan"),
}


def _placed(family: str, ending: str) -> Method:
    """A method of `_METHODS` with the network of its family, and on pixels with a recipe of its own."""
    method = _METHODS[ending]
    own = _CLASSIFIER if family not in ("digits", "mnist") and method.objective == "cdvae_classifier" else {}
    network = f"{_AUTOENCODERS[family]}_{_WAYS[ending]}"
    return Method(method.objective, method.settings, {**own, "network": network, **method.fields})


# Training against white-box attacks, from a run of cdvae and one of a classifier, as the code has it: the rate falls
# after every 30 epochs and once more after 80. (Its warm-up jumps to the full rate after four of its five epochs.)
_HARDENING: dict[str, Any] = {
    "epochs": 150,
    "batch_size": 100,
    "optimizer": "sgd",
    "lr": 1.0,
    "weight_decay": 2e-4,
    "schedule": "multistep",
    "final_lr": 0.0,
    "milestones": (30, 60, 80, 90, 120),
    "warmup": 5.0,
    "clip_value": 1.0,
    "rand_augment": False,
}
# Not in the paper.
_SHORT_HARDENING: dict[str, Any] = {
    "epochs": 10,
    "optimizer": "sgd",
    "lr": 0.1,
    "weight_decay": 2e-4,
    "schedule": "onecycle",
    "final_lr": 0.0,
    "clip_value": 1.0,
}

_EXCEPTIONS = {(family, ending): _placed(family, ending) for family in _FAMILIES for ending in _WAYS}

_EXCEPTIONS |= {
    (family, "cdvae-adv"): Method(
        "cdvae_adv",
        fields={
            **(_SHORT_HARDENING if family in ("digits", "mnist") else _HARDENING),
            "network": f"{autoencoder}_rn",
        },
    )
    for family, autoencoder in _AUTOENCODERS.items()
}

# Denoisers before the classifier of a run of cdvae-x, by the optimizers of their own papers.
_IMAGES = {"digits": "digits", "mnist": "mnist", "cifar10": "cifar", "rimagenet": "imagenet"}
_DENOISING: dict[str, dict[str, Any]] = {
    "cdvae-hgd": {"lr": 1e-3},
    "cdvae-ape-gan": {"lr": 2e-4, "betas": (0.5, 0.999)},
}
_DENOISERS = {"cdvae-hgd": "unet", "cdvae-ape-gan": "ape"}
_EXCEPTIONS |= {
    (family, ending): Method(
        _METHODS[ending].objective, fields={**fields, "network": f"{_IMAGES[family]}_{_DENOISERS[ending]}"}
    )
    for family in _FAMILIES
    for ending, fields in _DENOISING.items()
}

SYSTEM = System(_FAMILIES, _METHODS, _EXCEPTIONS)
