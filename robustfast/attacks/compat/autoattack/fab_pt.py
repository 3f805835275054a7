"""``autoattack.fab_pt``, for scripts that import from there."""

from robustfast.attacks.compat.autoattack.parts import FABAttack_PT

__all__ = ["FABAttack_PT"]
