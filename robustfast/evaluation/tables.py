"""Tables for the terminal and for a markdown file: percent with two decimals, "-" where there is no number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.table import Table

from robustfast.evaluation.comparison import PRINTED, Cell, Column, Comparison
from robustfast.evaluation.document import records

__all__ = ["accuracy_table", "comparison_markdown", "comparison_table", "detection_table", "percent", "shown"]

DECIMALS = {"fraction": 3, "count": 0, "value": 2, "thousands": 2}
"""Of numbers that are no percent, by their unit."""


def percent(fraction: float | None, *, signed: bool = False) -> str:
    """A fraction as percent with two decimals ("97.50"), or "-" for None; `signed` always shows the sign."""
    if fraction is None:
        return "-"
    return f"{100 * fraction:{'+' if signed else ''}.2f}"


def shown(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A number in the unit of its column, with as many decimals as `DECIMALS` says; percent with two."""
    if value is None or unit == "percent":
        return percent(value, signed=signed)
    return f"{PRINTED.get(unit, 1) * value:{'+' if signed else ''}.{DECIMALS[unit]}f}"


def accuracy_table(document: Mapping[str, Any]) -> Table:
    """Accuracy of the three ways on natural images and under each attack of an `aat` document."""
    table = Table(title=f"{document['dataset']}, {document['images']} {document['split']} images (percent)")
    table.add_column("")
    for heading in ("S", "R", "N", "DIA"):
        table.add_column(heading, justify="right")
    natural = document["natural"]
    table.add_row("natural", *(percent(natural[way]) for way in "srn"), "-")
    for name, record in records(document).items():
        own, standard = record["adversarial"], record["standard_way"]
        lines = {"each way through itself": {**own, "s": standard["s"]}}
        # A one-way model has no standard way to attack: its line would be dashes alone.
        if standard["s"] is not None:
            lines["all through the standard way"] = standard
        table.add_section()
        for label, numbers in lines.items():
            table.add_row(f"{name}, {label}", *(percent(numbers[key]) for key in ("s", "r", "n", "dia")))
    return table


def detection_table(document: Mapping[str, Any]) -> Table | None:
    """Detection by disagreement of R and N (eq. 12), or None where no attack had all three ways to compare."""
    table = Table(title="Detection: R and N disagree (percent)")
    table.add_column("")
    for heading in ("TPR", "FPR", "RAD", "raw", "calibrated"):
        table.add_column(heading, justify="right")
    keys = ("tpr", "fpr", "balanced_accuracy", "raw", "calibrated")
    for name, record in records(document).items():
        if record["detection"]["tpr"] is None:
            continue
        for label, section in (("half natural, half", "detection"), ("only", "detection_adversarial")):
            table.add_row(f"{label} {name}", *(percent(record[section][key]) for key in keys))
    return table if table.row_count else None


def comparison_table(comparison: Comparison, note: str = "") -> Table:
    """Ours, the paper's and the difference below each other, per method."""
    # Tight, so that nine columns of numbers fit into the 80 characters of a plain terminal or log.
    table = Table(
        title=f"{comparison.title}{comparison.units}",
        caption=note or None,
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("Method")
    table.add_column("")
    for column in comparison.columns:
        table.add_column(f"{column.group}\n{column.heading}".strip(), justify="right")
    for method, cells in comparison.rows.items():
        table.add_section()
        name = comparison.label(method)
        for label, values in _lines(comparison.columns, cells):
            table.add_row(name, label, *values)
            name = ""
    return table


def comparison_markdown(comparison: Comparison, note: str = "") -> str:
    """The same table as GitHub markdown, ending in a newline."""
    headings = ["Method", ""]
    for group, columns in groupby(comparison.columns, key=lambda column: column.group):
        headings += [f"{group} {column.heading}".strip() for column in columns]
    lines = [
        f"### {comparison.title}{comparison.units}",
        "",
        "| " + " | ".join(headings) + " |",
        "|---|---|" + "---:|" * len(comparison.columns),
    ]
    for method, cells in comparison.rows.items():
        name = comparison.label(method)
        for label, values in _lines(comparison.columns, cells):
            lines.append("| " + " | ".join([name, label, *values]) + " |")
            name = ""
    if note:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _lines(columns: Sequence[Column], cells: Sequence[Cell]) -> list[tuple[str, list[str]]]:
    """Ours, the paper's and the difference, each with a text for each column; what no cell has is left out."""

    def texts(value: Callable[[Cell], float | None], *, signed: bool = False) -> list[str]:
        pairs = zip(columns, cells, strict=True)
        return [shown(value(cell), column.unit, signed=signed) for column, cell in pairs]

    ours, paper = texts(lambda cell: cell.ours), texts(lambda cell: cell.paper)
    if all(cell.paper is None for cell in cells):
        return [("ours", ours)]
    spreads = zip(paper, columns, cells, strict=True)
    paper = [
        text if cell.spread is None else f"{text}±{shown(cell.spread, column.unit)}"
        for text, column, cell in spreads
    ]
    # A row of a method that is not trained here is the paper's alone.
    if all(cell.ours is None for cell in cells):
        return [("paper", paper)]
    return [("ours", ours), ("paper", paper), ("diff.", texts(lambda cell: cell.difference, signed=True))]
