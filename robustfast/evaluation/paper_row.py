"""The rows of the papers' tables that a run can stand beside."""

from __future__ import annotations

from dataclasses import dataclass, replace

from robustfast.evaluation.comparison import Comparison
from robustfast.evaluation.papers import PAPERS
from robustfast.evaluation.run_record import RunRecord
from robustfast.training.config import differences

__all__ = ["PaperRow", "paper_rows"]


@dataclass(frozen=True)
class PaperRow:
    """A table of a paper cut down to a run's row.

    Attributes:
        paper: the paper's title.
        comparison: the row, ours beside the paper's.
        departures: flags in which the run differs from the paper's configuration, ``--epochs 3 (was 56)``.
    """

    paper: str
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
    """The tables with a row of this run; none where it was not evaluated so."""
    found = []
    for paper in PAPERS.values():
        for item in paper.items.values():
            row = item.beside(run)
            if row is None:
                continue
            preset, comparison = row
            kept = {field: getattr(preset, field) for field in _BESIDE_THE_POINT}
            mine = replace(run.config, preset=preset.preset, **kept)
            found.append(PaperRow(paper.title, comparison, tuple(differences(mine, preset))))
    return found
