"""How far an attack moves the features (figure A4; Se of section 4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.afd.grids import Grid, sweeps
from robustfast.evaluation.afd.taps import beside, run_label, tap, untapped
from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.progress import AttackBar
from robustfast.evaluation.tables import percent
from robustfast.training.run_folder import Run
from robustfast.visualization.radii import radius_name, radius_unit
from robustfast.visualization.sensitivity_curves import sensitivity_curves

__all__ = ["ATTACK", "SENSITIVITY", "Moved", "moved"]

ATTACK = "pgd-linf"


@dataclass(frozen=True)
class Moved:
    """How far features F(x) are from those of attacked images F(x').

    Attributes:
        median, std: over the images, of ||F(x) - F(x')||_2 / ||F(x)||_2; an image without features (F(x) = 0) has no
            such ratio and is left out.
        se: mean of ||F(x) - F(x')||_2 over all images (section 4.6).
        without: images with F(x) = 0.
    """

    median: float
    std: float
    se: float
    without: int


def moved(clean: Tensor, attacked: Tensor) -> Moved:
    """Compare features [N, H] of images with those of the same images under attack, in float64."""
    clean, attacked = clean.double(), attacked.double()
    length = clean.norm(dim=1)
    away = (clean - attacked).norm(dim=1)
    ratio = (away / length)[length > 0]
    if not len(ratio):
        return Moved(0.0, 0.0, away.mean().item(), len(length))
    # The mean of the middle two where their number is even, as numpy's.
    median = ratio.quantile(0.5).item()
    return Moved(median, ratio.std(correction=0).item(), away.mean().item(), int((length == 0).sum()))


def _make(context: PartContext) -> PartResult:
    """Numbers: "eps" and for each of them "median", "std", "se", "accuracy" of this run; under "others" of those of
    --against, by label."""
    runs = beside(context)
    grid = sweeps(context.run.config.dataset)[ATTACK]
    with context.progress(context.images * len(grid.printed) * len(runs)) as bar:
        found = {label: _of(label, run, grid, context, bar) for label, run in runs.items()}
    title = f"{context.run.config.dataset}, {context.images} test images, {ATTACK}"
    figure = sensitivity_curves(found, grid.named.norm, context.figure("sensitivity"), title=title)
    own = run_label(context.run)
    numbers = {
        "attack": ATTACK,
        "norm": grid.named.norm,
        "images": context.images,
        **found[own],
        "others": {label: numbers for label, numbers in found.items() if label != own},
    }
    return PartResult(numbers, [_table(found, grid, title)], [figure])


def _of(label: str, run: Run, grid: Grid, context: PartContext, bar: AttackBar) -> dict[str, Any]:
    where = tap(run.model)
    bar.say(f"{ATTACK} on {label}")
    clean = collect(where.feature, context.batches(bar=bar), model=where.model)
    at_eps, accuracies = [moved(clean.values, clean.values)], [clean.accuracy]
    for eps in grid.printed[1:]:
        attack = grid.named.build(where.model, eps, seed=context.request.seed)
        attacked = collect(where.feature, context.batches(bar=bar), attack=attack, model=where.model)
        at_eps.append(moved(clean.values, attacked.values))
        accuracies.append(attacked.accuracy)
    return {
        "tap": where.where,
        "without_features": at_eps[0].without,
        "eps": list(grid.printed),
        **{key: [getattr(one, key) for one in at_eps] for key in ("median", "std", "se")},
        "accuracy": accuracies,
    }


def _table(found: Mapping[str, Mapping[str, Any]], grid: Grid, title: str) -> Table:
    table = Table(
        title=f"{title}: median of |F(x) - F(x')| / |F(x)|, Se = mean of |F(x) - F(x')|, accuracy in percent",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    unit, _ = radius_unit(grid.printed, grid.named.norm)
    for heading in ("run", ""):
        table.add_column(heading, no_wrap=True)
    for eps in grid.printed:
        table.add_column(radius_name(eps, unit), justify="right")
    for label, numbers in found.items():
        table.add_section()
        table.add_row(label, "median", *(f"{value:.3f}" for value in numbers["median"]))
        table.add_row("", "Se", *(f"{value:.3f}" for value in numbers["se"]))
        table.add_row("", "accuracy", *map(percent, numbers["accuracy"]))
    taps = {label: numbers["tap"] for label, numbers in found.items()}
    same = len(set(taps.values())) == 1
    where = next(iter(taps.values())) if same else ", ".join(f"{label} {one}" for label, one in taps.items())
    table.caption = f"F: {where}"
    return table


SENSITIVITY = Part(
    "sensitivity",
    "how far PGD moves the features (AFD, figure A4, and Se of section 4.6)",
    _make,
    unfit=untapped,
    takes=("against",),
)
