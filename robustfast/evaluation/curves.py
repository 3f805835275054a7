"""Accuracies over the epochs, as training wrote them down."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from robustfast.errors import UserError

__all__ = ["HeldOutCurves", "held_out_curves"]


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


def held_out_curves(path: Path) -> HeldOutCurves:
    """Read the held-out checks from a run's metrics.jsonl; before the first one, the curves are empty.

    Raises:
        UserError: the file cannot be read, or a line of it is damaged.
    """
    curves = HeldOutCurves()
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if "natural" not in record:
                continue
            curves.epochs.append(int(record["epoch"]))
            for kind in ("natural", "adversarial"):
                for way, value in record[kind].items():
                    getattr(curves, kind).setdefault(way, []).append(float(value))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({error}); put the file back from a copy"
            ) from None
    return curves
