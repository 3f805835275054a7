"""Attacks: adversarial images from a model, built and called alike."""

from robustfast.attacks.attack import Attack, AttackReport
from robustfast.attacks.config import AttackConfig
from robustfast.attacks.losses import LOSSES
from robustfast.attacks.modes import eval_mode
from robustfast.attacks.pgd import PGD, pgd
from robustfast.attacks.presets import ATTACKS, Preset
from robustfast.attacks.three_way_pgd import ThreeWayPGD

__all__ = [
    "ATTACKS",
    "LOSSES",
    "PGD",
    "Attack",
    "AttackConfig",
    "AttackReport",
    "Preset",
    "ThreeWayPGD",
    "eval_mode",
    "pgd",
]
