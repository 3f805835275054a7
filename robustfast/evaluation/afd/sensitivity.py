"""How far an attack moves the features (figure A4; Se of section 4.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from robustfast.attacks import Attack, eval_mode
from robustfast.evaluation.afd.grids import Grid, sweeps
from robustfast.evaluation.afd.taps import Tap, beside, run_label, tap, untapped
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import Pieces, Work, pieces
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
    return _summarised(*_lengths(clean, attacked))


def _lengths(clean: Tensor, attacked: Tensor) -> tuple[Tensor, Tensor]:
    """||F(x)||_2 and ||F(x) - F(x')||_2 of each image: float64 [N]."""
    clean, attacked = clean.double(), attacked.double()
    return clean.norm(dim=1), (clean - attacked).norm(dim=1)


def _summarised(length: Tensor, away: Tensor) -> Moved:
    length, away = length.double(), away.double()
    ratio = (away / length)[length > 0]
    if not len(ratio):
        return Moved(0.0, 0.0, away.mean().item(), len(length))
    # The mean of the middle two where their number is even, as numpy's.
    median = ratio.quantile(0.5).item()
    return Moved(median, ratio.std(correction=0).item(), away.mean().item(), int((length == 0).sum()))


def _make(context: PartContext) -> PartResult:
    """Kept batch by batch: an interruption loses one.

    Numbers: the attack's "settings", "eps" and for each of them "median", "std", "se", "accuracy" of this run; under
    "others" of those of --against, by label."""
    runs = beside(context)
    grid = sweeps(context.run.config.dataset)[ATTACK]
    with pieces(context, SENSITIVITY.name) as kept:
        found = {label: _of(label, run, grid, context, kept) for label, run in runs.items()}
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


def _of(label: str, run: Run, grid: Grid, context: PartContext, kept: Pieces) -> dict[str, Any]:
    where = tap(run.model)
    settings = grid.settings(where.model, seed=context.request.seed)
    at_eps, accuracies = [], []
    for eps in grid.printed:
        attack = grid.named.build(where.model, eps, seed=context.request.seed) if eps else None
        found = kept.of(
            f"{ATTACK} {eps:.4g} on {label}",
            _compared(where, attack),
            models=[run.model],
            eps=eps,
            given=settings,
        )
        at_eps.append(_summarised(found["length"], found["away"]))
        accuracies.append(found["right"].double().mean().item())
    return {
        "tap": where.where,
        "settings": settings,
        "without_features": at_eps[0].without,
        "eps": list(grid.printed),
        **{key: [getattr(one, key) for one in at_eps] for key in ("median", "std", "se")},
        "accuracy": accuracies,
    }


def _compared(where: Tap, attack: Attack | None) -> Work:
    """How long the features of each image are, how far they move, and who is classified right; in eval mode."""

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = x if attack is None else attack(x, y, positions)
        with eval_mode(where.model), torch.no_grad():
            clean = where.feature(x)
            length, away = _lengths(clean, clean if attack is None else where.feature(images))
            return {"length": length, "away": away, "right": where.model(images).argmax(1) == y}

    return work


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
