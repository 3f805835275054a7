"""Ours beside the paper's, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["PRINTED", "Cell", "Column", "Comparison"]

PRINTED = {"percent": 100, "thousands": 1e-3}
"""Unit to what a number is multiplied by where it is printed, if not by 1."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: what it has in JSON.
        group: printed over it and its neighbours; empty where nothing is.
        heading: its own.
        unit: of its numbers; percent are kept as fractions and thousands as ones; a value is any other number.
    """

    key: str
    group: str
    heading: str
    unit: Literal["percent", "fraction", "count", "value", "thousands"] = "percent"


@dataclass(frozen=True)
class Cell:
    """Two numbers that stand beside each other; None where nothing was measured or printed.

    Attributes:
        ours, paper: in the unit of the column, percent as fractions.
        spread: what the paper prints behind a plus-minus sign.
    """

    ours: float | None
    paper: float | None
    spread: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None where one of the two is missing."""
        return None if self.ours is None or self.paper is None else self.ours - self.paper


@dataclass(frozen=True)
class Comparison:
    """A table of the paper with ours in it: rows by method, one cell per column.

    Attributes:
        title, columns: of the table.
        rows: method to its cells.
        labels: method to what the paper prints for it; one that is missing stands for itself.
    """

    title: str
    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> str:
        """What a heading says of the numbers, in brackets; empty where each column has its own."""
        return " (percent)" if {column.unit for column in self.columns} <= {"percent"} else ""

    def label(self, method: str) -> str:
        """The method as the paper prints it."""
        return self.labels.get(method, method)

    def row(self, *methods: str) -> Comparison:
        """The table cut down to one row, or to some."""
        return replace(self, rows={method: self.rows[method] for method in methods})

    def of_columns(self, first: int, last: int) -> Comparison:
        """The table cut down to its columns from `first` to before `last`."""
        rows = {method: cells[first:last] for method, cells in self.rows.items()}
        return replace(self, columns=self.columns[first:last], rows=rows)

    def as_json(self) -> dict[str, Any]:
        """The table as plain values (percent as fractions), rows by method and cells by column key."""
        return {
            "title": self.title,
            "rows": {
                method: {
                    column.key: {"ours": cell.ours, "paper": cell.paper, "difference": cell.difference}
                    | ({} if cell.spread is None else {"paper_spread": cell.spread})
                    for column, cell in zip(self.columns, cells, strict=True)
                }
                for method, cells in self.rows.items()
            },
        }
