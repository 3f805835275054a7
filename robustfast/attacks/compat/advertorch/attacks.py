"""``advertorch.attacks``, for scripts that import from there."""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat import advertorch
from robustfast.attacks.compat.advertorch import *  # noqa: F403
from robustfast.attacks.compat.model import unsupported

__all__ = list(advertorch.__all__)


def __getattr__(name: str) -> NoReturn:
    raise unsupported("advertorch", name)
