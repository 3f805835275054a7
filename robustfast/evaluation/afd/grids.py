"""The attacks of AFD's evaluation with the radii each is run at, as printed and as the published areas ask for.

Source: AFD (Bashivan et al. 2021), tables 1, 2 and A2.

An area under a curve that starts at the clean accuracy is at least that of its first trapezoid. Some of the areas that
table 2 gives for natural training are smaller than that on the grids of table A2: those cells were made on the grids of
the authors' notebook, or on ones that fit. They stand here as corrected, beside the printed ones.

Steps of 0.025 and 0.033 in table A2 are Foolbox's relative ones, of eps. Not stated there: the step of MIM, which is
AdverTorch's 0.01 here (its 40 steps then reach no farther than 0.4), and the details of DDN, DeepFool and C&W, which
are Foolbox's: an attack that looks for the nearest image runs once, and what it found is pulled into the ball of each
radius and classified again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robustfast.evaluation.attack_names import NamedAttack
from robustfast.registry import lookup

__all__ = ["FAMILIES", "NOMINAL", "SWEEPS", "Grid", "nominal", "sweeps"]

FAMILIES: Mapping[str, str] = {
    "digits": "digits",
    "mnist": "mnist",
    "fashion_mnist": "mnist",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "svhn": "cifar",
    "tiny_imagenet": "tiny",
    "image_folder": "tiny",
    "imagenette": "tiny",
    "restricted_imagenet": "tiny",
}
"""Data set to the column of table A2 it is attacked by. Of the paper's own: MNIST, CIFAR-10, CIFAR-100 and
Tiny-ImageNet."""


@dataclass(frozen=True)
class Grid:
    """An attack with the radii of its curve.

    Attributes:
        named: the attack, by the name it has in files and tables.
        printed: radii of table A2, rising from 0.
        corrected: those that fit the published areas; None where the printed ones do.
    """

    named: NamedAttack
    printed: tuple[float, ...]
    corrected: tuple[float, ...] | None = None

    @property
    def eps(self) -> tuple[float, ...]:
        """All radii of both, each once."""
        return tuple(sorted({*self.printed, *(self.corrected or ())}))

    def settings(self, model: Callable[[Tensor], Tensor], *, seed: int) -> dict[str, Any]:
        """Every setting of the attack on `model` but its radius, defaults included, as plain values."""
        built = self.named.build(model, None if self.named.minimal else self.printed[-1], seed=seed)
        return {name: value for name, value in self.named.as_json(built).items() if name != "eps"}


def _named(name: str, attack: str, norm: str, **settings: Any) -> NamedAttack:
    return NamedAttack(name, attack, norm, {"norm": norm, **settings})


def _pixels(*numbers: int) -> tuple[float, ...]:
    return tuple(number / 255 for number in numbers)


_CIFAR_PGD = {"steps": 20, "step_size": 2 / 255, "relative_step": None, "random_start": "ball"}
_MIM = _named("mim", "mim", "linf", steps=40, step_size=0.01, relative_step=None, decay=1.0)
_DDN = _named("ddn", "ddn", "l2", steps=100, init_eps=1.0, gamma=0.05)
# As Foolbox, the last point counts also where it fools nobody: pulled into a ball it may.
_DEEPFOOL = _named("deepfool", "deepfool", "linf", steps=50, candidates=10, overshoot=0.02, keep_failed=True)
_CW = _named("cw", "cw-l2", "l2", steps=100, step_size=0.05, search_steps=9, c=1e-3, confidence=0.0)
_AA = _named("aa", "autoattack", "linf")


def _pgd(family: str, name: str = "pgd-linf") -> NamedAttack:
    """PGD-linf: 40 steps of eps / 30 for MNIST and digits, 20 of 2/255 else."""
    if family in ("mnist", "digits"):
        return _named(name, "pgd-foolbox", "linf", steps=40, relative_step=0.01 / 0.3)
    return _named(name, "pgd", "linf", **_CIFAR_PGD)


_MNIST_LINF = (0.0, 0.1, 0.3, 0.35, 0.4, 0.45, 0.5)
_CIFAR_LINF = _pixels(0, 2, 4, 8, 16, 32)
_TINY_LINF = _pixels(0, 2, 4, 8, 16)
# 8x8 digits are trained at a third of MNIST's linf radius (AAT, RFD) or half of it (AFD) and have 64 pixels, not 784: a
# perturbation of every pixel by a third is 10 times shorter in l2, 37 times in l1. Hence about a third, a tenth and a
# 40th of MNIST's radii; half for C&W, whose radii on MNIST are small beside those of the other l2 attacks.
_DIGITS_LINF = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)

_RADII: Mapping[str, Mapping[str, tuple[tuple[float, ...], tuple[float, ...] | None]]] = {
    "mnist": {
        "pgd-linf": (_MNIST_LINF, None),
        "pgd-l2": ((0.0, 2.0, 5.0, 10.0), (0.0, 2.0, 5.0, 10.0, 20.0)),
        "pgd-l1": ((0.0, 10.0, 50.0, 100.0, 200.0), None),
        "fgsm": (_MNIST_LINF, None),
        "mim": ((0.0, 0.1, 0.3, 0.5, 0.8, 1.0), None),
        "ddn": ((0.0, 1.0, 2.0, 5.0), (0.0, 1.0, 2.0, 5.0, 10.0)),
        "deepfool": (_MNIST_LINF, None),
        "cw": ((0.0, 0.5, 1.0, 1.5, 2.0), None),
        "aa": ((0.0, 0.2, 0.3, 0.35), None),
    },
    "cifar": {
        "pgd-linf": (_CIFAR_LINF, None),
        "pgd-l2": ((0.0, 2.0, 5.0, 10.0), None),
        "pgd-l1": ((0.0, 10.0, 50.0, 100.0, 200.0), (0.0, 10.0, 50.0)),
        "fgsm": (_pixels(0, 2, 4, 8, 16, 32, 64), None),
        "mim": (_CIFAR_LINF, None),
        "ddn": ((0.0, 2.0, 5.0, 10.0, 15.0), (0.0, 2.0, 5.0, 10.0)),
        "deepfool": (_pixels(0, 2, 4, 8, 16, 32, 64), None),
        "cw": ((0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 1.0, 2.0, 5.0)),
        "aa": (_pixels(0, 8, 16, 32), None),
    },
    "tiny": {
        "pgd-linf": (_TINY_LINF, None),
        "pgd-l2": ((0.0, 2.0, 5.0), (0.0, 2.0, 5.0, 10.0, 20.0)),
        "pgd-l1": ((0.0, 10.0, 50.0), None),
        "fgsm": (_CIFAR_LINF, None),
        "mim": (_TINY_LINF, None),
        "ddn": ((0.0, 0.2, 0.5, 1.0), None),
        "deepfool": (_TINY_LINF, None),
        "cw": ((0.0, 0.5, 1.0, 1.5, 2.0), None),
        "aa": (_pixels(0, 2, 4, 8), None),
    },
    "digits": {
        "pgd-linf": (_DIGITS_LINF, None),
        "pgd-l2": ((0.0, 0.2, 0.5, 1.0, 2.0), None),
        "pgd-l1": ((0.0, 0.25, 1.25, 2.5, 5.0), None),
        "fgsm": (_DIGITS_LINF, None),
        "mim": (_DIGITS_LINF, None),
        "ddn": ((0.0, 0.2, 0.5, 1.0, 2.0), None),
        "deepfool": (_DIGITS_LINF, None),
        "cw": ((0.0, 0.25, 0.5, 0.75, 1.0), None),
        "aa": ((0.0, 0.05, 0.1, 0.15), None),
    },
}

SWEEPS: Mapping[str, Mapping[str, Grid]] = {
    family: {
        named.name: Grid(named, *radii[named.name])
        for named in (
            _pgd(family),
            _named("pgd-l2", "pgd-foolbox", "l2", steps=50, relative_step=0.025),
            _named("pgd-l1", "pgd-foolbox", "l1", steps=50, relative_step=0.025),
            _named("fgsm", "fgsm", "linf"),
            _MIM,
            _DDN,
            _DEEPFOOL,
            _CW,
            _AA,
        )
    }
    for family, radii in _RADII.items()
}
"""Column of table A2 to its nine attacks by name, in the order of table 2."""

# Digits: the radius that their presets train at, as the paper's are.
_NOMINAL_EPS = {"mnist": 0.3, "cifar": 8 / 255, "tiny": 0.015, "digits": 0.15}
_NOMINAL_CW_EPS = {"mnist": 1.0, "cifar": 1.0, "tiny": 1.0, "digits": 0.5}

NOMINAL: Mapping[str, Mapping[str, tuple[NamedAttack, float]]] = {
    family: {
        "pgd": (_pgd(family, "pgd"), eps),
        "cw": (_CW, _NOMINAL_CW_EPS[family]),
        "aa": (_AA, eps),
    }
    for family, eps in _NOMINAL_EPS.items()
}
"""Column of table A2 to the attacks of table 1 by name, each with its one radius."""


def sweeps(dataset: str) -> Mapping[str, Grid]:
    """The nine attacks that a data set is swept with, by name.

    Raises:
        UserError: an unknown data set.
    """
    return SWEEPS[lookup("data set", FAMILIES, dataset)]


def nominal(dataset: str) -> Mapping[str, tuple[NamedAttack, float]]:
    """The attacks of table 1 on a data set, by name, each with its radius.

    Raises:
        UserError: an unknown data set.
    """
    return NOMINAL[lookup("data set", FAMILIES, dataset)]
