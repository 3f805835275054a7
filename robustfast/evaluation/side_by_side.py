"""Runs side by side: the same quantity of each, and how the later ones differ from the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from robustfast.errors import UserError
from robustfast.evaluation.aat import FILE
from robustfast.evaluation.document import records
from robustfast.evaluation.run_record import RunRecord, flat_config

__all__ = ["Line", "accuracy_lines", "config_lines", "machine_lines", "throughput_lines"]

WAYS = {"s": "S, standard", "r": "R, robust", "n": "N, non-robust", "dia": "DIA = R − N"}
DETECTION = {
    "tpr": "attacked images found (TPR)",
    "fpr": "natural images accused (FPR)",
    "balanced_accuracy": "balanced accuracy (RAD)",
    "raw": "accuracy of S on the mixture",
    "calibrated": "the same, R where R and N disagree",
}


@dataclass(frozen=True)
class Line:
    """One quantity of each run.

    Attributes:
        group: what it belongs to: lines of a group follow each other.
        name: what it is.
        values: one for each run; None where a run has none.
    """

    group: str
    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        """Whether the runs do not all have the same value."""
        return any(value != self.values[0] for value in self.values[1:])


def accuracy_lines(runs: Sequence[RunRecord]) -> list[Line]:
    """Accuracies and detection rates of evaluated runs as fractions; lines that no run has a number for are left out.

    Raises:
        UserError: an evaluation lacks a part, or a part is no number.
    """
    found: dict[tuple[str, str], list[float | None]] = {}
    for position, run in enumerate(runs):
        for key, value in _numbers(run):
            found.setdefault(key, [None] * len(runs))[position] = value
    lines = [Line(group, name, tuple(values)) for (group, name), values in found.items()]
    groups = list(dict.fromkeys(line.group for line in lines))
    lines.sort(key=lambda line: groups.index(line.group))
    return [line for line in lines if any(value is not None for value in line.values)]


def config_lines(runs: Sequence[RunRecord]) -> list[Line]:
    """Every field of the configurations by its flag, grouped by what it is about; the preset comes first."""
    flat = [flat_config(run.config) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    lines = [
        Line(
            name.partition(".")[0] if "." in name else "run", name, tuple(fields.get(name) for fields in flat)
        )
        for name in names
    ]
    return sorted(lines, key=lambda line: ("run", "objective", "attack").index(line.group))


def machine_lines(runs: Sequence[RunRecord]) -> list[Line]:
    """Version, commit, start and hardware of each run."""
    lines = [
        Line("software", "robustfast", tuple(run.folder.version for run in runs)),
        Line("software", "commit", tuple(run.folder.commit for run in runs)),
    ]
    software = ("torch", "cuda", "python", "system")
    lines += [Line("software", name, tuple(run.hardware.get(name) for run in runs)) for name in software]
    lines.append(Line("machine", "started", tuple(run.started for run in runs)))
    names = dict.fromkeys(name for run in runs for name in run.hardware)
    lines += [
        Line("machine", name, tuple(run.hardware.get(name) for run in runs))
        for name in names
        if name not in software
    ]
    return lines


def throughput_lines(runs: Sequence[RunRecord]) -> list[Line]:
    """Images a second and where the time went, in seconds; medians over the epochs, which a busy moment moves least."""

    def of(name: str, reduce: Callable[[list[float]], float]) -> tuple[float | None, ...]:
        return tuple(reduce(run.series[name].values) if name in run.series else None for run in runs)

    return [
        Line("speed", "images/s, median of the epochs", of("images_per_second", median)),
        Line("speed", "images/s, fastest epoch", of("images_per_second", max)),
        Line("time", "an epoch, median", of("seconds", median)),
        Line("time", "all epochs", of("seconds", sum)),
        Line("time", "held-out checks", of("check_seconds", sum)),
    ]


def _numbers(run: RunRecord) -> list[tuple[tuple[str, str], float | None]]:
    """((group, name), fraction) of everything that the evaluation of a run holds."""
    if run.document is None:
        return []
    found: list[tuple[tuple[str, str], float | None]] = []
    try:
        natural = "natural images"
        found += [((natural, WAYS[way]), _fraction(run.document["natural"][way])) for way in "srn"]
        for name, record in records(run.document).items():
            own, standard = record["adversarial"], record["standard_way"]
            group = f"{name}: each way attacked through itself"
            own = {"s": standard["s"], **own}
            found += [((group, WAYS[key]), _fraction(own[key])) for key in WAYS]
            if standard["s"] is not None:
                group = f"{name}: all ways on images that attack S"
                found += [((group, WAYS[key]), _fraction(standard[key])) for key in WAYS]
            group = f"{name}: detection by R ≠ N, half natural, half attacked images"
            rates = record["detection"]
            found += [((group, words), _fraction(rates[key])) for key, words in DETECTION.items()]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run.path / FILE} is damaged ({type(error).__name__}: {error}); delete it and run "
            f"python -m robustfast.evaluate {run.path}"
        ) from None
    return found


def _fraction(value: Any) -> float | None:
    if value is not None and not (isinstance(value, int | float) and -1 <= value <= 1):
        raise ValueError(f"{value!r} is no fraction")
    return value
