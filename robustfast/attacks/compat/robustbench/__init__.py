"""RobustBench's `benchmark` on data sets of this machine.

``from robustfast.attacks.compat.robustbench import benchmark`` in place of ``from robustbench import benchmark``.
"""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat.model import unsupported
from robustfast.attacks.compat.robustbench.data import load_cifar10, load_cifar100
from robustfast.attacks.compat.robustbench.eval import benchmark
from robustfast.attacks.compat.robustbench.utils import clean_accuracy, load_model

__all__ = ["benchmark", "clean_accuracy", "load_cifar10", "load_cifar100", "load_model"]


def __getattr__(name: str) -> NoReturn:
    raise unsupported("robustbench", name)
