"""``autoattack.autopgd_base``, for scripts that import from there."""

from robustfast.attacks.compat.autoattack.parts import APGDAttack, APGDAttack_targeted

__all__ = ["APGDAttack", "APGDAttack_targeted"]
