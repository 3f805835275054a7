"""The attacks by name, as `--attacks` and `AutoAttack(attacks=...)` spell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robustfast.attacks.attack import Attack
from robustfast.attacks.pgd import PGD

__all__ = ["ATTACKS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """An attack by name: its class, and the settings that make it this one.

    Attributes:
        attack: the class.
        settings: keywords that differ from the class's defaults; a caller's own come on top.
    """

    attack: type[Attack]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, model: Any, **settings: Any) -> Attack:
        """Build it, with `settings` on top of the preset's own."""
        return self.attack(model, **{**self.settings, **settings})


ATTACKS: dict[str, Preset] = {
    "pgd": Preset(PGD),
}
"""Attack name to what builds it; each is built from a model and keywords and called with images and labels."""
