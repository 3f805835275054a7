"""The names that an evaluation takes, and the settings that its result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["VERSIONS", "check_attacks", "check_version", "part_of", "settings_of"]

VERSIONS = ("standard", "plus", "rand", "custom")

_APGD = ("n_iter", "n_restarts", "eot_iter", "thr_decr", "use_largereps")
_FAB = ("n_iter", "alpha_max", "eta", "beta")
_SQUARE = ("n_queries", "n_restarts", "p_init", "loss", "rescale_schedule", "targeted")

# By the name of an attack: the evaluation's attribute that runs it, and which of the settings there it goes by.
_ATTACKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "apgd-ce": ("apgd", _APGD),
    "apgd-dlr": ("apgd", _APGD),
    "apgd-t": ("apgd_targeted", (*_APGD, "n_target_classes")),
    "fab": ("fab", (*_FAB, "n_restarts")),
    "fab-t": ("fab", (*_FAB, "n_target_classes")),
    "square": ("square", _SQUARE),
}


def check_version(version: str) -> None:
    """Refuse a version that does not exist.

    Raises:
        ValueError: names those that do.
    """
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}, expected one of {', '.join(VERSIONS)}")


def check_attacks(names: Iterable[str]) -> None:
    """Refuse attacks that do not exist.

    Raises:
        ValueError: names those that do.
    """
    given = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in given if name not in _ATTACKS]
    if unknown or isinstance(names, str):
        raise ValueError(f"attacks_to_run is {names!r}, expected a list of {', '.join(_ATTACKS)}")


def part_of(attack: str) -> str:
    """The evaluation's attribute that runs the attack of this name."""
    return _ATTACKS[attack][0]


def settings_of(adversary: Any) -> dict[str, Any]:
    """What the attacks to run go by, such as ``{"apgd.n_iter": 100, ...}``.

    A norm or radius of a part is in it where it is not the evaluation's own.
    """
    found = {}
    for attack in adversary.attacks_to_run:
        name, settings = _ATTACKS[attack]
        part = getattr(adversary, name)
        found |= {f"{name}.{setting}": _plain(getattr(part, setting)) for setting in settings}
        if part.eps != adversary.epsilon:
            found[f"{name}.eps"] = _plain(part.eps)
        if part.norm != adversary.norm:
            found[f"{name}.norm"] = part.norm
    return found


def _plain(value: Any) -> Any:
    """What JSON can hold, for numbers of numpy and torch too."""
    return value.item() if hasattr(value, "item") else value
