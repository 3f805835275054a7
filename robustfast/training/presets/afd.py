"""AFD's presets: its data sets and networks with both of its games and the baselines of its tables."""

from __future__ import annotations

from typing import Any

from robustfast.attacks.config import AttackConfig
from robustfast.training.presets.system import Method, System

__all__ = ["SYSTEM"]

# AFD, section 4.1 and table A1, with what the text leaves open from its code. All methods train the same network:
# features of unit norm before one linear layer.
_COMMON: dict[str, Any] = {"network": "unit_norm", "batch_size": 128, "lr": 0.1, "weight_decay": 1e-4}

_CIFAR: dict[str, Any] = {
    **_COMMON,
    "model": "resnet18",
    "epochs": 300,
    "milestones": (150, 250),
    "augment": True,
    # APGD sets its own step; the one here is that of AT's attack and of the checks.
    "attack": AttackConfig(eps=8 / 255, step_size=2 / 255, steps=20),
}

# Zhang et al. 2019, whose code AFD's authors ran. It counts epochs from 1, and the 75th is the first at a tenth.
_TRADES: dict[str, Any] = {
    "epochs": 76,
    "milestones": (74,),
    "weight_decay": 2e-4,
    "attack": AttackConfig(eps=0.031, step_size=0.007, steps=10),
}

_FAMILIES: dict[str, dict[str, Any]] = {
    # Not in the paper: less than a minute of one core. The radius is where natural training has lost most of its
    # accuracy and adversarial training has kept most of it.
    "digits-afd": {
        **_COMMON,
        "dataset": "digits",
        "model": "digits_cnn",
        "epochs": 30,
        "batch_size": 120,
        "schedule": "onecycle",
        "attack": AttackConfig(eps=0.15, step_size=0.03, steps=7, ramp=0.4),
        "validate_every": 5,
        "validate_images": 128,
        "threads": 1,
    },
    "mnist-afd": {
        **_COMMON,
        "dataset": "mnist",
        "model": "narrow_resnet",
        "epochs": 100,
        "milestones": (50, 80),
        "attack": AttackConfig(eps=0.3, step_size=0.01, steps=40),
    },
    "cifar10-rn18-afd": {**_CIFAR, "dataset": "cifar10"},
    "cifar100-rn18-afd": {**_CIFAR, "dataset": "cifar100"},
    "tiny-rn18-afd": {
        **_CIFAR,
        "dataset": "tiny_imagenet",
        "image_size": 32,
        "epochs": 500,
        "milestones": (300, 450),
        "attack": AttackConfig(eps=0.016, step_size=0.004, steps=20),
    },
}

_METHODS = {
    # Standard training has epochs of 3 passes: checked less often, the check stays a small part of the time.
    "nt": Method("st", fields={"validate_every": 20}),
    # Adversarial training and TRADES attack by PGD, where the paper's also took APGD's images.
    "at": Method("at", {"half": False}),
    "trades": Method("trades"),
    "match": Method("match"),
    "dcgan": Method("afd_dcgan"),
    "wgan": Method("afd_wgan"),
}

_EXCEPTIONS = {
    # With "success_only" most images of a batch come back clean here, and the discriminator learns too little from the
    # others: attacked features end up 0.47 away, with "max_loss" 0.27 (seed 0; 0.37 by adversarial training).
    ("digits-afd", "dcgan"): Method("afd_dcgan", {"returns": "max_loss"}),
    ("digits-afd", "wgan"): Method("afd_wgan", {"returns": "max_loss"}),
    ("mnist-afd", "nt"): Method("st", fields={"epochs": 20, "milestones": ()}),
    ("mnist-afd", "at"): Method("at", {"half": False}, {"epochs": 90, "milestones": (40, 80)}),
    # Their script for MNIST has no weight decay, and of its later milestones none is ever reached.
    ("mnist-afd", "trades"): Method(
        "trades", {"beta": 1.0}, {"lr": 0.01, "weight_decay": 0.0, "milestones": (54,)}
    ),
    ("cifar10-rn18-afd", "trades"): Method("trades", fields=_TRADES),
    ("cifar100-rn18-afd", "trades"): Method("trades", fields=_TRADES),
    ("tiny-rn18-afd", "trades"): Method(
        "trades", fields={**_TRADES, "attack": AttackConfig(eps=0.016, step_size=0.0036, steps=10)}
    ),
    # The one data set on which the gradient is penalised (table A1; the code's own default is 0).
    ("cifar10-rn18-afd", "wgan"): Method("afd_wgan", {"gp": 1.0}),
}

SYSTEM = System(_FAMILIES, _METHODS, _EXCEPTIONS)
