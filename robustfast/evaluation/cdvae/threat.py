"""What CD-VAE's runs are attacked with, and the noise that detectors have to tell from an attack."""

from __future__ import annotations

from collections.abc import Mapping

from robustfast.evaluation.grids import standard_eps
from robustfast.registry import lookup
from robustfast.training.run_folder import Run

__all__ = ["L2", "l2", "linf", "noise_level"]

_PIXELS = 1.0
_MNIST = 2.0

L2: Mapping[str, float] = {
    "digits": 0.5,
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": _PIXELS,
    "cifar100": _PIXELS,
    "svhn": _PIXELS,
    "tiny_imagenet": _PIXELS,
    "image_folder": _PIXELS,
    "imagenette": _PIXELS,
    "restricted_imagenet": _PIXELS,
}
"""Data set to the l2 radius. The paper has 1.0 for CIFAR-10 and for restricted ImageNet."""


def linf(run: Run) -> float:
    """The linf radius that a run is attacked at: that of its configured attack where it is of this norm, as 8/255 in
    the presets for CIFAR-10 and restricted ImageNet, else the usual one of its data set.

    Raises:
        UserError: an unknown data set.
    """
    attack = run.config.attack
    return attack.eps if attack.norm == "linf" else standard_eps(run.config.dataset, "linf")


def l2(run: Run) -> float:
    """The l2 radius that a run is attacked at: that of its configured attack where it is of this norm, else `L2` of
    its data set.

    Raises:
        UserError: an unknown data set.
    """
    attack = run.config.attack
    return attack.eps if attack.norm == "l2" else lookup("data set", L2, run.config.dataset)


def noise_level(attack: str) -> float:
    """Standard deviation, in normalised space, of the noise beside an attack of the detection tables: the paper's
    code, after Lee et al. 2018, has 0.0625 beside FGSM and 0.065 beside the others."""
    return 0.0625 if attack == "fgsm" else 0.065
