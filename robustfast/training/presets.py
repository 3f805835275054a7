"""Named configurations: each data set and backbone with each objective, at the papers' values."""

from __future__ import annotations

from typing import Any

from robustfast.attacks.config import AttackConfig
from robustfast.objectives import OBJECTIVES
from robustfast.training.config import TrainConfig

__all__ = ["DEFAULT", "PRESETS"]

DEFAULT = "digits-aatpp"

METHODS = ("st", "at", "trades", "aat", "aatpp", "pi")

# AAT, tables 4a and 5, with what the text leaves open (batch size, augmentation, start of the attack) from YOPO, which
# it cites for all of it. TRADES is not in that paper: it runs in the same setting as the rest, so that rows compare.
_CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "epochs": 105,
    "batch_size": 256,
    "milestones": (75, 90, 100),
    "augment": True,
    "attack": AttackConfig(eps=8 / 255, step_size=2 / 255, steps=10, random_start="pixel"),
}

FAMILIES: dict[str, dict[str, Any]] = {
    # Not in any paper: minutes on two cores. The attack's radius grows over the first 40 % of training, since from the
    # start at full strength the robust way learns nothing for the first ten epochs.
    "digits": {
        "dataset": "digits",
        "model": "digits_cnn",
        "epochs": 40,
        "batch_size": 120,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "schedule": "onecycle",
        "attack": AttackConfig(eps=0.1, step_size=0.03, steps=5, ramp=0.4),
        # Every fifth epoch, 128 images: 1 to 4 % of the time that the epochs between take.
        "validate_every": 5,
        "validate_images": 128,
        "threads": 1,
    },
    # The paper writes "l2" with eps 0.3; only linf gives the accuracies that it reports.
    "mnist": {
        "dataset": "mnist",
        "model": "small_cnn",
        "epochs": 56,
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "milestones": (50, 55),
        "attack": AttackConfig(eps=0.3, step_size=0.01, steps=5, random_start="pixel"),
    },
    "cifar10-prn18": {**_CIFAR10, "model": "preact_resnet18", "lr": 0.05, "weight_decay": 5e-4},
    "cifar10-wrn34": {**_CIFAR10, "model": "wide_resnet34_10", "lr": 0.1, "weight_decay": 2e-4},
}

# Zhang et al. 2019 weigh the robust term by 6 on CIFAR-10 (the objective's default) and by 1 on MNIST.
OBJECTIVE_FIELDS: dict[tuple[str, str], dict[str, Any]] = {
    ("mnist", "trades"): {"beta": 1.0},
    ("digits", "st"): {"terms": ("st",)},
}

# Standard training has epochs of 3 passes: checked less often, the check stays under 5 % of the time here too.
METHOD_FIELDS: dict[str, dict[str, Any]] = {"st": {"validate_every": 20}}


# The other families fill the paper's tables, whose ST row is one way that never saw another. On the digits ST is
# equation 6 on all three ways, AAT without its adversarial terms: the zero from which disentanglement counts.
OBJECTIVE_NAMES: dict[tuple[str, str], str] = {("digits", "st"): "aat"}


def _preset(family: str, method: str) -> TrainConfig:
    name = OBJECTIVE_NAMES.get((family, method), method)
    objective = OBJECTIVES[name].Config(**OBJECTIVE_FIELDS.get((family, method), {}))
    fields = FAMILIES[family] | METHOD_FIELDS.get(method, {})
    return TrainConfig(preset=f"{family}-{method}", method=name, objective=objective, **fields)


PRESETS: dict[str, TrainConfig] = {
    f"{family}-{method}": _preset(family, method) for family in FAMILIES for method in METHODS
}
