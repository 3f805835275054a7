"""The rows of the paper's tables that a run can stand beside."""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustfast.errors import UserError
from robustfast.evaluation.comparison import Comparison, compare
from robustfast.evaluation.paper import TABLES
from robustfast.evaluation.reproduction import FAMILIES
from robustfast.evaluation.run_record import RunRecord
from robustfast.training.config import differences
from robustfast.training.presets import PRESETS

__all__ = ["PaperRow", "paper_rows"]


@dataclass(frozen=True)
class PaperRow:
    """A table of the paper cut down to a run's row.

    Attributes:
        comparison: the row, ours beside the paper's.
        departures: flags in which the run differs from the paper's configuration, ``--epochs 3 (was 56)``.
    """

    comparison: Comparison
    departures: tuple[str, ...]


# Where and how fast a run computes, and how it watches itself: nothing that the paper's tables depend on.
_BESIDE_THE_POINT = (
    "backend",
    "engine",
    "whole_step",
    "threads",
    "seed",
    "validate_every",
    "validate_images",
)


def paper_rows(run: RunRecord) -> list[PaperRow]:
    """The tables with a row of this run's data, backbone, objective and terms; none where it was not evaluated so."""
    document, config = run.document, run.config
    if document is None:
        return []
    found = []
    for name, table in TABLES.items():
        preset = PRESETS.get(f"{FAMILIES[name]}-{config.method}")
        same = preset is not None and (preset.dataset, preset.model, preset.objective) == (
            config.dataset,
            config.model,
            config.objective,
        )
        if not same or table.rows.get(config.method) is None:
            continue
        try:
            comparison = compare(table, {config.method: document})
        except (KeyError, TypeError) as error:
            if set(table.attacks) <= {document["attack"]["name"], *document["other_attacks"]}:
                raise UserError(
                    f"the evaluation of {run.path} is damaged ({error}); run python -m robustfast.evaluate {run.path}"
                ) from None
            continue
        rows = {config.method: comparison.rows[config.method]}
        kept = {field: getattr(preset, field) for field in _BESIDE_THE_POINT}
        found.append(
            PaperRow(
                Comparison(comparison.title, comparison.columns, rows),
                tuple(differences(replace(config, preset=preset.preset, **kept), preset)),
            )
        )
    return found
