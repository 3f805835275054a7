"""A sweep on the terminal: accuracy of each attack at each eps, and the warnings below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from robustfast.evaluation.attack_names import NORMS
from robustfast.evaluation.tables import percent

__all__ = ["eps_labels", "grid_line", "heading", "sweep_table", "warning_lines"]

WORST = "all of them"


def eps_labels(eps: Sequence[float]) -> list[str]:
    """Radii as people write them: 255ths where a radius is one and has no short decimal."""

    def label(value: float) -> str:
        pixels = round(value * 255)
        return f"{pixels}/255" if len(repr(value)) > 8 and abs(value * 255 - pixels) < 1e-9 else f"{value:g}"

    return [label(value) for value in eps]


def heading(document: Mapping[str, Any], norm: str, label: str) -> str:
    """What stands over a table."""
    bound = norm if norm in NORMS else f"{norm} with its own bound"
    return f"{label}: {document['dataset']}, {document['images']} test images, {bound} (percent)"


def grid_line(document: Mapping[str, Any], norm: str) -> str:
    """What the areas in a table are of."""
    grids = {tuple(record["eps"]) for record in document["attacks"].values() if record["norm"] == norm}
    shown = "; ".join(", ".join(eps_labels(grid)) for grid in sorted(grids))
    return f"AUC: area under the accuracy in [0, 1] over eps / (largest eps), grid {shown}"


def sweep_table(document: Mapping[str, Any], norm: str) -> Table:
    """Accuracy in percent under the attacks of one norm, the area under each curve, and their worst case."""
    attacks = {name: record for name, record in document["attacks"].items() if record["norm"] == norm}
    grid = sorted({value for record in attacks.values() for value in record["eps"]})
    # Tight, so that a dozen radii fit into a plain terminal or log.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("eps")
    for heading in eps_labels(grid):
        table.add_column(heading, justify="right")
    table.add_column("AUC", justify="right")
    table.add_column("zero gradient", justify="right")
    rows = {**attacks, WORST: document["worst_case"][norm]} if len(attacks) > 1 else attacks
    for name, record in rows.items():
        if name == WORST:
            table.add_section()
        found = dict(zip(record["eps"], record["accuracy"], strict=True))
        auc = "-" if record["auc"] is None else f"{record['auc']:.4f}"
        zero = ""
        if name != WORST:
            gradients = record["gradients"]
            zero = f"{gradients['zero']}/{gradients['attacked']}"
        table.add_row(name, *(percent(found.get(value)) for value in grid), auc, zero)
    return table


def warning_lines(document: Mapping[str, Any]) -> list[str]:
    """One line for each sign of masked gradients, and one for samples whose gradient was not finite."""
    lines = [f"warning ({warning['check']}): {warning['text']}" for warning in document["warnings"]]
    for name, record in document["attacks"].items():
        if record["gradients"]["nonfinite"]:
            lines.append(
                f"warning (non-finite gradients): {record['gradients']['nonfinite']} of "
                f"{record['gradients']['attacked']} images under {name}"
            )
    return lines
