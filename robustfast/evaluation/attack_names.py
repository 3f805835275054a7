"""Attacks as a command line names them: ``pgd20-l2``, ``apgd-ce``, ``fab-t-l1``, ``cifar-linf``."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from robustfast import attacks
from robustfast.attacks import Attack, Preset
from robustfast.errors import UserError
from robustfast.evaluation.attacks import ATTACKS as AAT_ATTACKS

__all__ = ["NORMS", "NamedAttack", "known_names", "parse", "parse_all", "settings_of"]

NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True)
class NamedAttack:
    """An attack without its radius.

    Attributes:
        name: as it was written, which is what tables and files call it.
        attack: its name in `robustfast.attacks.ATTACKS`.
        norm: of its balls; the attack's own name where it is bounded otherwise, by a flow or a colour map: no radius of
            another attack can be compared with its.
        settings: what differs from the preset of `attack`: norm, steps, or all that an AAT preset fixes but its radius.
    """

    name: str
    attack: str
    norm: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def preset(self) -> Preset:
        return attacks.ATTACKS[self.attack]

    @property
    def own_eps(self) -> float | None:
        """The bound it has unless told otherwise; None where it looks for the nearest image."""
        return {**settings_of(self.preset.attack), **self.preset.settings}.get("eps")

    @property
    def kind(self) -> str:
        """What it knows of the model: "single-step", "iterative", "black-box" or "noise"."""
        return self.preset.attack.kind

    @property
    def minimal(self) -> bool:
        """Whether it looks for the nearest image, so that one run serves every radius."""
        return self.preset.attack.minimal

    def takes(self, setting: str) -> bool:
        """Whether its class has this keyword."""
        return setting in settings_of(self.preset.attack)

    def build(self, model: Any, eps: float | None, **settings: Any) -> Attack:
        """The attack on `model`; `settings` come on top of the name's own.

        Raises:
            UserError: a setting it refuses, in its own words.
        """
        try:
            return self.preset(model, **{**self.settings, "eps": eps, **settings})
        except (ValueError, TypeError) as error:
            raise UserError(f"attack {self.name}: {error}") from error

    def as_json(self, built: Attack) -> dict[str, Any]:
        """Every keyword of the class with the value that `built` has, defaults included."""
        values = {**settings_of(type(built)), **self.preset.settings, **self.settings}
        # What a class fixes for its parent is no longer the parent's default.
        values = {name: getattr(built, name, value) for name, value in values.items()}
        if hasattr(built, "law"):
            values["random_start"] = built.law or False
        return {"name": self.name, "attack": self.attack, **{key: _plain(values[key]) for key in values}}


def parse(name: str) -> NamedAttack:
    """Read NAME, NAMESTEPS, NAME-NORM or NAMESTEPS-NORM, or the name of an AAT preset.

    NAME is one of `robustfast.attacks.ATTACKS`. STEPS may stand behind any part of it: ``apgd50-ce`` and ``apgd-ce50``
    are the same. Without a norm it is the attack's own.

    Raises:
        UserError: an unknown name (with the closest one), a norm the attack does not know, or steps it does not take.
    """
    if name in AAT_ATTACKS:
        preset = AAT_ATTACKS[name]
        keywords = {**preset.strength.keywords(), "restarts": preset.restarts, "relative_step": None}
        # Radius and seed are the sweep's.
        del keywords["eps"]
        return NamedAttack(name, "pgd", keywords["norm"], keywords)
    for attack, steps, norm in _readings(name):
        return _checked(name, attack, steps, norm)
    raise UserError(f"unknown attack {name!r}{_closest(name)} known: {', '.join(sorted(known_names()))}")


def parse_all(names: Sequence[str]) -> tuple[NamedAttack, ...]:
    """`parse` of each.

    Raises:
        UserError: as `parse`, or a name twice.
    """
    if len(set(names)) != len(names):
        raise UserError(f"attacks {','.join(names)}: expected each name once")
    return tuple(map(parse, names))


def known_names() -> list[str]:
    """Every name without steps, the AAT presets last."""
    return [*attacks.ATTACKS, *AAT_ATTACKS]


def settings_of(attack: type[Attack]) -> dict[str, Any]:
    """The keywords of an attack's constructor but for the model, with their defaults; ``**settings`` leads upwards."""
    found: dict[str, Any] = {}
    for owner in attack.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        for parameter in parameters:
            if parameter.name != "model" and parameter.kind not in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                found.setdefault(
                    parameter.name, None if parameter.default is parameter.empty else parameter.default
                )
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _readings(name: str) -> Iterator[tuple[str, int | None, str | None]]:
    """(attack, steps, norm) that the name may mean, the plainest first."""
    base, _, suffix = name.rpartition("-")
    for rest, norm in [(name, None), *([(base, suffix)] if suffix in NORMS else [])]:
        if rest in attacks.ATTACKS:
            yield rest, None, norm
        for digits in re.finditer(r"\d+(?=-|$)", rest):
            shorter = rest[: digits.start()] + rest[digits.end() :]
            if shorter in attacks.ATTACKS:
                yield shorter, int(digits[0]), norm


def _closest(name: str) -> str:
    """The nearest of all names with and without a norm, as a question; steps are left out of the comparison."""
    spelled = [
        *known_names(),
        *(f"{known}-{norm}" for known, preset in attacks.ATTACKS.items() for norm in preset.attack.norms),
    ]
    # "l2" is no number of steps.
    plain = re.sub(r"(?<!-l)\d+(?=-|$)", "", name)
    close = [found for tried in (name, plain) for found in get_close_matches(tried, spelled, n=1)]
    return f"; did you mean {close[0]!r}?" if close else ";"


def _checked(name: str, attack: str, steps: int | None, norm: str | None) -> NamedAttack:
    preset = attacks.ATTACKS[attack]
    takes = settings_of(preset.attack)
    settings: dict[str, Any] = {}
    if norm is not None:
        if norm not in preset.attack.norms:
            known = ", ".join(preset.attack.norms) or "no norm, only a bound of its own"
            raise UserError(f"attack {name!r}: {attack} knows {known}, not {norm}")
        settings["norm"] = norm
    if steps is not None:
        # A query is to a black-box attack what a step is to others.
        counted = next((setting for setting in ("steps", "queries") if setting in takes), None)
        if counted is None or preset.attack.kind == "single-step":
            raise UserError(f"attack {name!r}: {attack} has no number of steps; write {attack}")
        if steps < 1:
            raise UserError(f"attack {name!r}: expected at least 1 step")
        settings[counted] = steps
    own = preset.settings.get("norm", takes.get("norm"))
    norms = preset.attack.norms
    if norms and norm is None:
        norm = own if own in norms else norms[0]
        settings["norm"] = norm
    return NamedAttack(name, attack, norm or attack, settings)


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # which JSON has no number for: a margin without a limit
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", None) or repr(value)
