"""Which attacks each version of AutoAttack runs, and how it sets them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["VERSIONS", "for_classes", "parts_of"]

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
}

_TARGETS = 9


def parts_of(
    version: str, norm: str, attacks: Sequence[str], *, steps: int, queries: int, eot: int
) -> dict[str, dict[str, Any]]:
    """Every attack's settings, by name and in order."""
    one_start = version in ("standard", "rand")
    l1 = norm == "l1" and version == "standard"
    # What an attack does to a sample it has won is lost work here: the same samples fall. A random model's answer may
    # turn, so there each run goes on to its end, as in the package.
    stop = {"early_stop": eot == 1}
    apgd = {"steps": steps, "eot": eot, **stop}
    several = apgd | {"restarts": 1 if one_start and not l1 else 5}
    known: dict[str, dict[str, Any]] = {
        "apgd-ce": several,
        "apgd-dlr": several,
        "apgd-t": apgd | {"restarts": 1, "n_target_classes": 5 if l1 else _TARGETS},
        "fab": {"steps": steps, **stop, "restarts": 1 if one_start else 5},
        "fab-t": {"steps": steps, **stop, "restarts": 1, "n_target_classes": _TARGETS},
        "square": {"queries": queries, "restarts": 1, "resc_schedule": False},
    }
    return {name: dict(known.get(name, {})) for name in VERSIONS[version] or attacks}


def for_classes(name: str, settings: Mapping[str, Any], classes: int) -> tuple[dict[str, Any], str]:
    """The settings as far as so many classes allow, and why they had to change; "" where they did not."""
    settings, reasons = dict(settings), []
    if name == "apgd-t" and classes < 4:
        settings["loss"] = "margin"
        reasons.append("the targeted DLR loss needs 4, so it goes by the margin to the target")
    if name == "apgd-dlr" and classes < 3:
        settings["loss"] = "margin"
        reasons.append("the DLR loss needs 3, so it climbs the margin")
    if settings.get("n_target_classes", 0) > classes - 1:
        settings["n_target_classes"] = classes - 1
        reasons.append(f"there are no more than {classes - 1} targets")
    return settings, f"{name} with {classes} classes: {'; '.join(reasons)}" if reasons else ""
