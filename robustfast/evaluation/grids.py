"""The radii an accuracy curve is measured at, and the area under it.

Source: AFD, table A2 and the notebook of its authors, which differ; where the published areas can come from the
notebook's grids alone, those stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = ["GRIDS", "STANDARD_EPS", "area", "checked_grid", "grid", "standard_eps"]

_PIXELS = tuple(number / 255 for number in (0, 2, 4, 8, 16, 32))
_MNIST = {
    "linf": (0.0, 0.1, 0.3, 0.35, 0.4, 0.45, 0.5),
    "l2": (0.0, 2.0, 5.0, 10.0, 20.0),
    "l1": (0.0, 10.0, 50.0, 100.0, 200.0),
}
_CIFAR = {"linf": _PIXELS, "l2": (0.0, 2.0, 5.0, 10.0), "l1": (0.0, 10.0, 50.0)}
_TINY = {"linf": _PIXELS, "l2": (0.0, 2.0, 5.0, 10.0, 20.0), "l1": (0.0, 10.0, 50.0)}
# 8x8 images: half of the attack that their runs are trained and evaluated with, and up to three times it.
_DIGITS = {
    "linf": (0.0, 0.05, 0.1, 0.15, 0.2, 0.3),
    "l2": (0.0, 0.25, 0.5, 1.0, 2.0),
    "l1": (0.0, 1.0, 2.0, 5.0),
}

GRIDS: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "svhn": _CIFAR,
    "image_folder": _TINY,
    "tiny_imagenet": _TINY,
    "imagenette": _TINY,
    "restricted_imagenet": _TINY,
}
"""Data set and norm to the radii of a sweep that names none."""

_OF_32_PIXELS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
_OF_28_PIXELS = {"linf": 0.3, "l2": 2.0}
# RobustBench's for ImageNet.
_OF_FILES = {"linf": 4 / 255}

STANDARD_EPS: Mapping[str, Mapping[str, float]] = {
    "digits": {"linf": 0.1, "l2": 0.5},
    "mnist": _OF_28_PIXELS,
    "fashion_mnist": _OF_28_PIXELS,
    "cifar10": _OF_32_PIXELS,
    "cifar100": _OF_32_PIXELS,
    "svhn": _OF_32_PIXELS,
    "image_folder": _OF_FILES,
    "tiny_imagenet": _OF_FILES,
    "imagenette": _OF_FILES,
    "restricted_imagenet": _OF_FILES,
}
"""Data set and norm to the one radius of the protocol `autoattack`."""


def grid(dataset: str, norm: str) -> tuple[float, ...]:
    """The radii a sweep takes where none are named.

    Raises:
        UserError: an unknown data set.
    """
    return lookup("data set", GRIDS, dataset)[norm]


def standard_eps(dataset: str, norm: str) -> float:
    """The one radius of the protocol `autoattack`.

    Raises:
        UserError: an unknown data set, or a norm in which it has none.
    """
    known = lookup("data set", STANDARD_EPS, dataset)
    if norm not in known:
        raise UserError(f"{dataset} has no usual eps for {norm}: give --eps")
    return known[norm]


def checked_grid(flag: str, values: Sequence[float], norms: Sequence[str]) -> tuple[float, ...]:
    """The radii in rising order with 0 in front.

    Args:
        flag: which one gave them, for the message.
        values: the radii.
        norms: of the attacks they are for.

    Raises:
        UserError: none, a negative one, one that is not finite, one twice, or pixels in 0-255 under linf.
    """
    if not values:
        raise UserError(f"{flag} names no radius: expected some such as 2/255,4/255,8/255")
    for value in values:
        if not 0 <= value < float("inf"):
            raise UserError(f"{flag} {value:g}: expected a finite radius of at least 0")
        if value > 1 and "linf" in norms:
            raise UserError(
                f"{flag} {value:g}: under linf a radius is in pixels of [0, 1], where 1 reaches every image; write "
                f"{value:g}/255, or give the radii of l2 and l1 by --eps-l2 and --eps-l1"
            )
    if len(set(values)) != len(values):
        raise UserError(f"{flag}: expected each radius once")
    return tuple(sorted({0.0, *values}))


def area(eps: Sequence[float], accuracy: Sequence[float]) -> float | None:
    """Area under the accuracy in [0, 1] over eps / (largest eps), by trapezoids; None where 0 is the only radius.

    Args:
        eps: rising, the first one 0.
        accuracy: one for each.

    Raises:
        ValueError: radii that do not rise from 0, or another number of accuracies.
    """
    if len(eps) != len(accuracy) or not eps or eps[0] != 0 or any(b <= a for a, b in pairwise(eps)):
        raise ValueError(
            f"expected radii that rise from 0 and one accuracy each, got {list(eps)}, {list(accuracy)}"
        )
    if len(eps) == 1:
        return None
    parts = [(eps[k + 1] - eps[k]) * (accuracy[k] + accuracy[k + 1]) / 2 for k in range(len(eps) - 1)]
    return sum(parts) / eps[-1]
