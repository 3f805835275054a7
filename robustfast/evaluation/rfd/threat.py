"""What a run is attacked with: radii by data set and norm, and the PGD of the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from robustfast.attacks import APGD, PGD
from robustfast.evaluation.attack_names import NamedAttack
from robustfast.registry import lookup
from robustfast.training.run_folder import Run

__all__ = ["PGD_STEPS", "RADII", "described", "pgd", "radius"]

PGD_STEPS = 20

# The paper names no radius. Its l2 attack is taken at 1.0, its linf attacks at 8/255; l1 is RobustBench's 12.
_PIXELS = {"linf": 8 / 255, "l2": 1.0, "l1": 12.0}
_MNIST = {"linf": 0.3, "l2": 2.0, "l1": 10.0}
# 224 pixels and more a side: RobustBench's for ImageNet under l2 and l1.
_LARGE = {"linf": 8 / 255, "l2": 3.0, "l1": 75.0}

RADII: Mapping[str, Mapping[str, float]] = {
    "digits": {"linf": 0.1, "l2": 0.5, "l1": 2.0},
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": _PIXELS,
    "cifar100": _PIXELS,
    "svhn": _PIXELS,
    "tiny_imagenet": _PIXELS,
    "image_folder": _LARGE,
    "imagenette": _LARGE,
    "restricted_imagenet": _LARGE,
}
"""Data set and norm to the radius that its images are attacked at."""


def radius(run: Run, norm: str = "linf") -> float:
    """The radius at which a run is attacked, whatever it was trained at: that of its data set.

    Raises:
        UserError: an unknown data set.
    """
    return lookup("data set", RADII, run.config.dataset)[norm]


def pgd(
    model: Callable[[Tensor], Tensor],
    eps: float,
    *,
    norm: str = "linf",
    steps: int = PGD_STEPS,
    seed: int = 0,
    loss: str | Callable[[Tensor, Tensor], Tensor] = "ce",
) -> PGD:
    """PGD as the paper's tables have it: a random start, 20 steps of a quarter of eps, which is 2/255 at 8/255."""
    return PGD(model, eps, steps=steps, norm=norm, seed=seed, loss=loss)


def described(attack: PGD | APGD) -> dict[str, Any]:
    """Every setting of an attack, defaults included, as plain values for the file."""
    known = "pgd" if isinstance(attack, PGD) else "apgd-ce"
    settings = NamedAttack(attack.name, known, attack.norm).as_json(attack)
    return {name: value for name, value in settings.items() if name != "attack"}
