"""What a sweep is asked for: attacks with their radii, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NamedAttack

__all__ = ["SweepAttack", "SweepSettings"]


@dataclass(frozen=True)
class SweepAttack:
    """An attack with the radii it is run at.

    Attributes:
        named: the attack.
        eps: rising, the first one 0: there the images are left as they are.
        settings: on top of the name's own.
        described: plain values that say what a setting is which is none itself, such as another model.
    """

    named: NamedAttack
    eps: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepSettings:
    """What holds for every attack of a sweep.

    Attributes:
        seed: of every draw.
        eot: passes a gradient is averaged over, for randomised models. An attack that has no such setting is given the
            mean of as many passes' logits as its model.
        monotone: an image that is fooled at one eps counts as fooled at every larger one and is not attacked again:
            cheaper, and curves that never rise. Without it each eps is a new attack.
        minimal: how an attack that looks for the nearest image is judged at an eps: "distance": by how far what it
            found lies; "clip": as Foolbox does, what it found is pulled into the ball and classified again.
        probes: whether to look for masked gradients with attacks of their own.
    """

    seed: int = 0
    eot: int = 1
    monotone: bool = False
    minimal: Literal["distance", "clip"] = "distance"
    probes: bool = True

    def __post_init__(self) -> None:
        if self.eot < 1:
            raise UserError(f"--eot {self.eot}: expected at least 1 pass")
