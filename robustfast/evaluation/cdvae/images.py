"""Figure 2: images and attacked images, their parts, and what the attack changed of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast.evaluation.cdvae.attacked import IMAGES, attacked, in_words, of_both
from robustfast.evaluation.cdvae.classifiers import no_generator, split_network
from robustfast.evaluation.examples import one_of_each
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.picked import evaluated, picked
from robustfast.visualization.activation_maps import ActivationMap, activation_maps

__all__ = ["COLUMNS", "PART", "stretched"]

COLUMNS = 8

_HEADINGS = ("x", "G(x)", "R(x)", "x'", "G(x')", "R(x')", "|delta|", "|delta_G|", "|delta_R|")
_ROWS = dict(zip(IMAGES, _HEADINGS, strict=True))


def stretched(images: Tensor) -> tuple[Tensor, float, float]:
    """Images [N, C, H, W] with their smallest value as 0 and their largest as 1, and both values; grey where equal."""
    low, high = images.min().item(), images.max().item()
    return ((images - low) / (high - low) if high > low else torch.full_like(images, 0.5)), low, high


def _make(context: PartContext) -> PartResult:
    network, by = split_network(context.run), attacked(context)
    looked_at = evaluated(context, context.images)
    positions = looked_at[one_of_each(context.split.labels[looked_at], min(COLUMNS, context.images))]
    found: list[dict[str, Tensor]] = []
    for x, y, place in picked(context, positions):
        x_adv = by.attack(x, y, place)
        with torch.no_grad():
            both = of_both(network.split(x), network.split(x_adv))
            values = {
                **{name: part.abs() if name.startswith("delta") else part for name, part in both.items()},
                "predicted": by.model(x).argmax(1),
                "attacked": by.model(x_adv).argmax(1),
            }
        found.append({name: value.cpu() for name, value in values.items()})
    grids = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
    names = context.split.classes
    numbers: dict[str, Any] = {
        "positions": positions.tolist(),
        "classes": [names[label] for label in context.split.labels[positions].tolist()],
        "predicted": [names[label] for label in grids["predicted"].tolist()],
        "attacked": [names[label] for label in grids["attacked"].tolist()],
        "ranges": {},
        "attack": by.settings,
    }
    rows = []
    captions = {"x": numbers["classes"], "x_adv": [f"as {name}" for name in numbers["attacked"]]}
    for name, heading in _ROWS.items():
        shown, low, high = stretched(grids[name])
        numbers["ranges"][name] = [low, high]
        cells = [
            ActivationMap(image, caption=caption)
            for image, caption in zip(shown, captions.get(name, [""] * len(shown)), strict=True)
        ]
        rows.append((f"{heading}\n{low:.2f} to {high:.2f}", cells))
    figure = activation_maps(
        rows,
        [""] * len(positions),
        context.figure(PART.name),
        title=f"{context.path.name}: {in_words(by.settings)}\neach row from its smallest value to its largest",
    )
    return PartResult(numbers, figures=[figure])


PART = Part(
    "images",
    "x, G(x), R(x), attacked ones and their differences, in normalised pixels (figure 2)",
    _make,
    unfit=no_generator,
    takes=("source", "steps"),
)
