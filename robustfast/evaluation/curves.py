"""What training wrote down over the epochs: its lines, series of numbers, and held-out accuracies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from robustfast.errors import UserError

__all__ = ["HeldOutCurves", "Series", "held_out_curves", "metric_lines", "series"]

T = TypeVar("T")


@dataclass
class HeldOutCurves:
    """Held-out accuracies as fractions, one value per entry of `epochs` for each way.

    Attributes:
        epochs: the epochs after which training checked, counted from 1.
        natural, adversarial: way to its accuracies; under the training attack, each way through itself.
    """

    epochs: list[int] = field(default_factory=list)
    natural: dict[str, list[float]] = field(default_factory=dict)
    adversarial: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Series:
    """One number over the epochs, which count from 1; epochs without the number are left out."""

    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, one an epoch; none before the first epoch has ended.

    A last line without its line end is one that is being written, or that a kill cut off: it is no record yet.

    Raises:
        UserError: the file cannot be read, or a line of it is damaged.
    """
    try:
        text = path.read_text() if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None

    def record(number: int, line: str) -> dict[str, Any]:
        found = _whole(path, number, lambda: json.loads(line))
        if not isinstance(found, dict) or not isinstance(found.get("epoch"), int):
            raise _damaged(path, number, "it names no epoch")
        return found

    *whole, _ = text.split("\n")
    return [record(number, line) for number, line in enumerate(whole, start=1)]


def series(path: Path, lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Every number of a metrics file by name, nested ones as ``outer/inner`` (terms/ar, natural/s).

    Args:
        path: the file, for messages.
        lines: its records, as `metric_lines` gives them.

    Raises:
        UserError: a value that is no number.
    """
    found: dict[str, Series] = {}
    for number, record in enumerate(lines, start=1):
        for name, value in record.items():
            if name == "epoch":
                continue
            entries = {name: value}
            if isinstance(value, dict):
                entries = {f"{name}/{key}": entry for key, entry in value.items()}
            for key, entry in entries.items():
                curve = found.setdefault(key, Series())
                curve.epochs.append(record["epoch"])
                curve.values.append(_whole(path, number, lambda entry=entry: float(entry)))
    return found


def held_out_curves(path: Path) -> HeldOutCurves:
    """Read the held-out checks from a run's metrics.jsonl; before the first one, the curves are empty.

    Raises:
        UserError: the file cannot be read, or a line of it is damaged.
    """
    curves = HeldOutCurves()

    def add(record: Mapping[str, Any]) -> None:
        curves.epochs.append(record["epoch"])
        for kind in ("natural", "adversarial"):
            for way, value in record[kind].items():
                getattr(curves, kind).setdefault(way, []).append(float(value))

    for number, record in enumerate(metric_lines(path), start=1):
        if "natural" in record:
            _whole(path, number, lambda record=record: add(record))
    return curves


def _whole(path: Path, number: int, read: Callable[[], T]) -> T:
    """What `read` returns; where it meets something else than it expects, line `number` is damaged."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, number, error) from None


def _damaged(path: Path, number: int, reason: object) -> UserError:
    return UserError(f"{path}: line {number} is damaged ({reason}); put the file back from a copy")
