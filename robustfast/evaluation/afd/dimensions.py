"""How many units a network uses, and how many dimensions its features fill (table A4)."""

from __future__ import annotations

from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.afd.taps import beside, run_label, tap, untapped
from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.training.run_folder import Run

__all__ = ["DIMENSIONS", "SHARE", "principal_components", "used_units"]

SHARE = 0.99
"""Of the variance, that the counted components hold together."""


def used_units(values: Tensor) -> int:
    """How many of the H features [N, H] are not zero on some image."""
    return int((values != 0).any(0).sum())


def principal_components(values: Tensor, share: float = SHARE) -> int:
    """The smallest number of principal components with at least `share` of the variance of features [N, H].

    From the singular values of the centred features, in float64. N images have N - 1 components at most; features that
    are all alike have none.
    """
    centred = values.double()
    centred = centred - centred.mean(0)
    variance = torch.linalg.svdvals(centred).square()
    total = variance.sum()
    # What is left of a constant by rounding is no dimension.
    if total <= centred.numel() * (torch.finfo(values.dtype).eps * values.abs().max()) ** 2:
        return 0
    held = variance.cumsum(0) / total
    # A share that is met exactly must not be missed by the last bit of a sum.
    return int((held < share - 1e-12).sum()) + 1


def _make(context: PartContext) -> PartResult:
    runs = beside(context)
    with context.progress(context.images * len(runs)) as bar:
        found = {}
        for label, run in runs.items():
            bar.say(f"features of {label}")
            found[label] = _of(run, context.batches(bar=bar))
    own = run_label(context.run)
    table = Table(
        title=f"Units not zero on some test image, and principal components with {SHARE:.0%} of the variance",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    for heading in ("run", "features", "units", "dimensions", ""):
        table.add_column(heading, justify="left" if heading in ("run", "") else "right")
    for label, numbers in found.items():
        counts = (str(numbers[key]) for key in ("features", "units", "dimensions"))
        table.add_row(label, *counts, numbers["tap"])
    if context.images <= found[own]["features"]:
        table.caption = f"{context.images} images span {context.images - 1} dimensions at most"
    others = {label: numbers for label, numbers in found.items() if label != own}
    return PartResult(
        {"share": SHARE, "images": context.images, **found[own], "others": others}, tables=[table]
    )


def _of(run: Run, batches: Any) -> dict[str, Any]:
    where = tap(run.model)
    values = collect(where.feature, batches).values
    return {
        "tap": where.where,
        "features": values.shape[1],
        "units": used_units(values),
        "dimensions": principal_components(values),
    }


DIMENSIONS = Part(
    "dimensions",
    "units in use and principal components with 99 % of the variance (table A4)",
    _make,
    unfit=untapped,
    takes=("against",),
)
