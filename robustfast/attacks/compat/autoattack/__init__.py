"""The calls of the AutoAttack package: ``from robustfast.attacks.compat.autoattack import AutoAttack``."""

from robustfast.attacks.compat.autoattack.ensemble import AutoAttack
from robustfast.attacks.compat.autoattack.parts import (
    APGDAttack,
    APGDAttack_targeted,
    FABAttack_PT,
    SquareAttack,
)
from robustfast.attacks.compat.autoattack.state import EvaluationState

__all__ = [
    "APGDAttack",
    "APGDAttack_targeted",
    "AutoAttack",
    "EvaluationState",
    "FABAttack_PT",
    "SquareAttack",
]
