"""AAT's tables from evaluations of the `aat` protocol: which of our numbers stands against which printed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustfast.evaluation.comparison import Cell, Column, Comparison
from robustfast.evaluation.document import assemble, records
from robustfast.evaluation.metrics import dia
from robustfast.evaluation.papers.aat.numbers import METHODS, PaperTable, Row

__all__ = ["combine_one_way", "compare", "method_label"]

Document = Mapping[str, Any]
"""What `robustfast.evaluation.aat` writes: accuracies as fractions."""


def compare(table: PaperTable, documents: Mapping[str, Document]) -> Comparison:
    """Put the evaluations of our runs into a table of the paper.

    Args:
        table: one of `robustfast.evaluation.papers.aat.numbers.TABLES`.
        documents: method to its evaluation; a method that is missing leaves our cells empty.

    Raises:
        KeyError: a document lacks an attack that the table needs.
    """
    columns = _columns(table)
    rows = {}
    for method, printed in table.rows.items():
        document = documents.get(method)
        rows[method] = tuple(
            Cell(
                ours=None if document is None else _ours(document, table.source, column.key),
                paper=_printed(printed, column.key),
            )
            for column in columns
        )
    return Comparison(table.title, columns, rows, METHODS)


def combine_one_way(standard: Document, robust: Document) -> Document:
    """The ST+AT row: the non-robust way of an ST run beside the robust way of an AT run, and their DIA (section 3.1).

    Args:
        standard: evaluation of a run that trained the non-robust way.
        robust: evaluation of a run that trained the robust way, under the same attacks.

    Returns:
        A document with `natural` and `adversarial` alone: two separate models have no common standard way.
    """

    def pair(r: float | None, n: float | None) -> dict[str, float | None]:
        return {"r": r, "n": n, "dia": dia(r, n)}

    r, n = records(robust), records(standard)
    header = {
        "ways": "rn",
        "natural": {"s": None, "r": robust["natural"]["r"], "n": standard["natural"]["n"]},
    }
    common = {
        name: {
            "attack": r[name]["attack"],
            "adversarial": pair(r[name]["adversarial"]["r"], n[name]["adversarial"]["n"]),
        }
        for name in r
        if name in n
    }
    return assemble(header, common)


def method_label(method: str) -> str:
    """The method as the paper's tables print it."""
    return METHODS.get(method, method)


def _columns(table: PaperTable) -> tuple[Column, ...]:
    if table.source == "detection":
        (attack,) = table.attacks
        mixture, half = "equal mixture", "adversarial half"
        return (
            Column(f"{attack}.detection.balanced_accuracy", mixture, "RAD"),
            Column(f"{attack}.detection.raw", mixture, "Raw"),
            Column(f"{attack}.detection.calibrated", mixture, "Calibrated"),
            Column(f"{attack}.detection_adversarial.tpr", half, "RAD"),
            Column(f"{attack}.detection_adversarial.raw", half, "Raw"),
            Column(f"{attack}.detection_adversarial.calibrated", half, "Calibrated"),
        )
    columns = []
    if table.source == "adversarial":
        columns = [Column(f"natural.{way}", "natural", way.upper()) for way in "srn"]
    ways = ("r", "n", "dia") if table.source == "adversarial" else ("s", "r", "n", "dia")
    for attack, heading in table.attacks.items():
        columns += [Column(f"{attack}.{table.source}.{way}", heading, way.upper()) for way in ways]
    return tuple(columns)


def _ours(document: Document, source: str, key: str) -> float | None:
    first, *rest = key.split(".")
    if first == "natural":
        return document["natural"][rest[0]]
    record = records(document)[first]
    section, name = rest
    # A one-way model has no standard way of its own: its only way is what "a standard classifier" means in appendix C.
    if section == "standard_way" and len(document["ways"]) == 1:
        section = "adversarial"
    return record[section].get(name)


_PRINTED = {"balanced_accuracy": "rad", "tpr": "rad", "raw": "raw", "calibrated": "calibrated"}


def _printed(row: Row, key: str) -> float | None:
    first, *rest = key.split(".")
    if first == "natural":
        percent = None if row.natural is None else getattr(row.natural, rest[0])
    elif rest[0].startswith("detection"):
        percent = None if row.detection is None else getattr(row.detection, _PRINTED[rest[1]])
    else:
        percent = None if row.attacked is None else getattr(row.attacked[first], rest[1])
    return None if percent is None else percent / 100
