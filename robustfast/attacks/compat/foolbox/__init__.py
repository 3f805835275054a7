"""The calls of Foolbox 3.3: ``from robustfast.attacks.compat import foolbox as fb``."""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat.foolbox import attacks, criteria, distances, models, utils
from robustfast.attacks.compat.foolbox.base import Attack
from robustfast.attacks.compat.foolbox.criteria import (
    Criterion,
    Misclassification,
    TargetedMisclassification,
)
from robustfast.attacks.compat.foolbox.distances import Distance
from robustfast.attacks.compat.foolbox.models import Model, PyTorchModel, accuracy
from robustfast.attacks.compat.foolbox.utils import samples
from robustfast.attacks.compat.model import unsupported

__all__ = [
    "Attack",
    "Criterion",
    "Distance",
    "Misclassification",
    "Model",
    "PyTorchModel",
    "TargetedMisclassification",
    "accuracy",
    "attacks",
    "criteria",
    "distances",
    "models",
    "samples",
    "utils",
]


def __getattr__(name: str) -> NoReturn:
    raise unsupported("foolbox", name)
