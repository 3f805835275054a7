"""The classes of torchattacks 3.5.1: ``from robustfast.attacks.compat import torchattacks``."""

from __future__ import annotations

from typing import NoReturn

from robustfast.attacks.compat.model import unsupported
from robustfast.attacks.compat.torchattacks import attack
from robustfast.attacks.compat.torchattacks.attack import Attack
from robustfast.attacks.compat.torchattacks.ensemble import APGD, APGDT, FAB, AutoAttack, Square
from robustfast.attacks.compat.torchattacks.gradient_sign import (
    BIM,
    EOTPGD,
    FFGSM,
    FGSM,
    MIFGSM,
    PGD,
    PGDL2,
    RFGSM,
    TPGD,
)
from robustfast.attacks.compat.torchattacks.nearest import CW, DeepFool
from robustfast.attacks.compat.torchattacks.plain import GN, SPSA, VANILA, MultiAttack

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "CW",
    "EOTPGD",
    "FAB",
    "FFGSM",
    "FGSM",
    "GN",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "SPSA",
    "TPGD",
    "VANILA",
    "Attack",
    "AutoAttack",
    "DeepFool",
    "MultiAttack",
    "Square",
    "attack",
]


def __getattr__(name: str) -> NoReturn:
    raise unsupported("torchattacks", name)
