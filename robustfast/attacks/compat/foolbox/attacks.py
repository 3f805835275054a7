"""``foolbox.attacks``: the attacks by Foolbox's names."""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat.foolbox import gradient_descent, minimization
from robustfast.attacks.compat.foolbox.base import Attack, FixedEpsilonAttack, MinimizationAttack, Repeated
from robustfast.attacks.compat.foolbox.gradient_descent import *  # noqa: F403
from robustfast.attacks.compat.foolbox.minimization import *  # noqa: F403
from robustfast.attacks.compat.model import unsupported

__all__ = ["Attack", "FixedEpsilonAttack", "MinimizationAttack", "Repeated"]
__all__ += gradient_descent.__all__
__all__ += minimization.__all__


def __getattr__(name: str) -> NoReturn:
    raise unsupported("foolbox.attacks", name)
