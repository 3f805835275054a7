"""``autoattack.square``, for scripts that import from there."""

from robustfast.attacks.compat.autoattack.parts import SquareAttack

__all__ = ["SquareAttack"]
