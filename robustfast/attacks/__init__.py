"""Attacks: adversarial images from a model, built and called alike."""

from collections.abc import Callable

from robustfast.attacks.config import AttackConfig
from robustfast.attacks.losses import LOSSES
from robustfast.attacks.modes import eval_mode
from robustfast.attacks.pgd import PGD, AttackReport, pgd
from robustfast.attacks.three_way_pgd import ThreeWayPGD

__all__ = ["ATTACKS", "LOSSES", "PGD", "AttackConfig", "AttackReport", "ThreeWayPGD", "eval_mode", "pgd"]

ATTACKS: dict[str, Callable[..., object]] = {"pgd": PGD, "three_way_pgd": ThreeWayPGD}
"""Attacks by name. Each is built from a model and keywords, and called with images and targets."""
