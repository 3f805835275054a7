"""How far an attack turns the robust and the non-robust features: what the angular loss (eq. 6) asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.rfd.judge import no_discriminator
from robustfast.evaluation.rfd.threat import described, pgd, radius

__all__ = ["PART", "angles"]


def angles(z: Tensor, other: Tensor) -> Tensor:
    """arccos of the cosine of z and `other`, rows of float [N, H], in radians: float64 [N], nan where one is zero.

    By 2 atan2(|u - v|, |u + v|) of the unit vectors, which keeps small angles that an arccos loses.
    """
    u, v = (
        rows.double() / torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True) for rows in (z, other)
    )
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))


def _make(context: PartContext) -> PartResult:
    run = context.run
    model = run.model
    way = model.way(run.config.main_way)
    attack = pgd(way, radius(run), seed=context.request.seed)
    with context.progress(2 * context.images) as bar:
        clean, attacked = (
            collect(lambda x: model.encode(x, "rn"), context.batches(bar=bar), attack=made_by, model=way)
            for made_by in (None, attack)
        )
    numbers: dict[str, Any] = {}
    turned = {name: angles(clean.values[name], attacked.values[name]) for name in "rn"}
    for name, values in turned.items():
        defined = values[~values.isnan()]
        numbers[name] = defined.mean().item() if len(defined) else None
    known = numbers["r"] and numbers["n"] is not None
    numbers["ratio"] = numbers["n"] / numbers["r"] if known else None
    numbers["undefined"] = sum(int(values.isnan().sum()) for values in turned.values())
    numbers["eps"] = radius(run)
    numbers["attack"] = described(attack)
    table = Table(title=f"{context.path.name}: angle between clean and attacked features (mean)")
    for heading in ("features", "radians", "degrees"):
        table.add_column(heading, justify="left" if heading == "features" else "right")
    for name, heading in {"r": "robust", "n": "non-robust"}.items():
        angle = numbers[name]
        shown = ("-", "-") if angle is None else (f"{angle:.4f}", f"{math.degrees(angle):.2f}")
        table.add_row(heading, *shown)
    if numbers["ratio"] is not None:
        table.caption = f"non-robust features turn {numbers['ratio']:.2f} times as far as robust ones"
    return PartResult(numbers, [table])


PART = Part(
    "angles", "how far PGD turns robust and non-robust features (eq. 6)", _make, unfit=no_discriminator
)
