"""The features of clean and attacked images in the plane (figures A6 to A8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.afd.grids import Grid, sweeps
from robustfast.evaluation.afd.taps import beside, tap, untapped
from robustfast.evaluation.embedding import COMPONENTS, embed, perplexity_for
from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.progress import AttackBar
from robustfast.training.run_folder import Run
from robustfast.visualization.embedding_grid import embedding_grid
from robustfast.visualization.radii import radius_name, radius_unit

__all__ = ["ATTACK", "IMAGES", "TSNE"]

ATTACK = "pgd-linf"
IMAGES = 500
"""The most test images that are drawn, at each radius: the paper's ten thousand take hours, and hide each other."""
_DIGITS = 3
"""Decimals of the points in the file, which are the ones that are drawn."""


def _make(context: PartContext) -> PartResult:
    """One map for each run, of its features at all radii together: a row shows how far the attack moves the images.
    (The paper does not say whether each of its panels has a map of its own.)

    Numbers: "labels" of the images, and "rows" by label of the run, each with its "points": at each of "eps" (x, y) of
    the images.
    """
    runs = beside(context)
    grid = sweeps(context.run.config.dataset)[ATTACK]
    count = min(context.images, IMAGES)
    if count * len(grid.printed) < 4:
        raise UserError(f"--images {count}: t-SNE takes 4 points and more, give more images")
    # Those that are evaluated, or so many of them as are drawn.
    positions = torch.arange(count) * len(context.split) // count
    rows: dict[str, dict[str, Any]] = {}
    with context.progress(count * len(grid.printed) * len(runs)) as bar:
        for label, run in runs.items():
            bar.say(f"{ATTACK} on {label}")
            at_eps = _features(run, grid, positions, context, bar)
            bar.say(f"t-SNE of {label}")
            points = embed(torch.cat(at_eps), seed=context.request.seed).split(count)
            rows[label] = {"tap": tap(run.model).where, "points": [_rounded(part) for part in points]}
    numbers = {
        "attack": ATTACK,
        "norm": grid.named.norm,
        "eps": list(grid.printed),
        "images": count,
        "perplexity": perplexity_for(count * len(grid.printed)),
        "components": COMPONENTS,
        "labels": context.split.labels[positions].tolist(),
        "rows": rows,
    }
    unit, _ = radius_unit(grid.printed, grid.named.norm)
    perplexity = f"{numbers['perplexity']:g}"
    figure = embedding_grid(
        {label: row["points"] for label, row in rows.items()},
        ["clean", *(f"eps {radius_name(eps, unit)}" for eps in grid.printed[1:])],
        numbers["labels"],
        context.split.classes,
        context.figure("tsne"),
        title=f"{context.run.config.dataset}, {count} test images, {ATTACK}: t-SNE, perplexity {perplexity}",
    )
    return PartResult(numbers, figures=[figure])


def _features(run: Run, grid: Grid, positions: Tensor, context: PartContext, bar: AttackBar) -> list[Tensor]:
    """Of the images at `positions`, [N, H] at each radius."""
    where = tap(run.model)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, y, index in context.batches(context.split.take(positions), bar=bar):
            # Attacked as in an evaluation of the whole split.
            yield x, y, positions.to(index.device)[index]

    attacks = [
        None,
        *(grid.named.build(where.model, eps, seed=context.request.seed) for eps in grid.printed[1:]),
    ]
    return [collect(where.feature, batches(), attack=attack).values for attack in attacks]


def _rounded(points: Tensor) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in point] for point in points.tolist()]


TSNE = Part(
    "tsne",
    "features of clean and attacked images in the plane (AFD, figures A6 to A8)",
    _make,
    unfit=untapped,
    takes=("against",),
)
