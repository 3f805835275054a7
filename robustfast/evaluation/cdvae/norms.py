"""Table 2: how long images, their parts and what an attack changes of each are."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.cdvae.attacked import IMAGES, attacked, in_words, mean_std, of_both
from robustfast.evaluation.cdvae.classifiers import no_generator, split_network
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.tables import percent

__all__ = ["NORMS", "PART", "norms"]

NORMS = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}

_HEADINGS = ("x", "G(x)", "R(x)", "x'", "G(x')", "R(x')", "delta = x - x'", "delta_G", "delta_R", "delta_z")
_ROWS = dict(zip((*IMAGES, "delta_z"), _HEADINGS, strict=True))


def norms(values: Tensor) -> dict[str, Tensor]:
    """Each of `NORMS` of the rows of float [B, ...]: [B] by name, in float64."""
    flat = values.flatten(1).double()
    return {name: torch.linalg.vector_norm(flat, order, dim=1) for name, order in NORMS.items()}


def _make(context: PartContext) -> PartResult:
    network, by = split_network(context.run), attacked(context)

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        x_adv = by.attack(x, y, positions)
        with torch.no_grad():
            clean, moved = network.split(x), network.split(x_adv)
        values = {**of_both(clean, moved), "delta_z": clean.latent - moved.latent}
        return {f"{name} {norm}": v for name, value in values.items() for norm, v in norms(value).items()}

    with pieces(context, PART.name) as kept:
        found = kept.of("norms", work, models=[by.model], attack=by.settings)
    numbers: dict[str, Any] = {
        name: {norm: mean_std(found[f"{name} {norm}"]) for norm in NORMS} for name in _ROWS
    }
    numbers["delta_r_larger"] = (found["delta_r l2"] > found["delta_g l2"]).double().mean().item()
    numbers["attack"] = by.settings
    return PartResult(numbers, [_table(context, numbers)])


def _table(context: PartContext, numbers: dict[str, Any]) -> Table:
    table = Table(title=f"{context.path.name}: norms of normalised images (mean±std)")
    for heading in ("", "l1 x 1e-3", "l2", "linf"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, heading in _ROWS.items():
        if name in ("x_adv", "delta"):
            table.add_section()
        scaled = [
            {key: value / (1000 if norm == "l1" else 1) for key, value in numbers[name][norm].items()}
            for norm in NORMS
        ]
        table.add_row(heading, *(f"{value['mean']:.4g}±{round(value['std'], 6):.2g}" for value in scaled))
    table.caption = (
        f"|delta_R| > |delta_G| in l2 for {percent(numbers['delta_r_larger'])} % of the images\n"
        f"{in_words(numbers['attack'])}"
    )
    return table


PART = Part(
    "norms",
    "norms of x, G(x), R(x) and of what PGD changes of them and of the code (table 2)",
    _make,
    unfit=no_generator,
    takes=("source", "steps"),
)
