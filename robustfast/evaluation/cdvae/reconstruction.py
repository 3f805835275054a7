"""How much of an image its parts hold, and whether D still knows the class by what G leaves."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.evaluation.cdvae.attacked import mean_std
from robustfast.evaluation.cdvae.classifiers import SHOWN, no_generator, split_network
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.tables import percent
from robustfast.models.class_disentangled import PARTS

__all__ = ["PART", "unexplained"]


def unexplained(x: Tensor, part: Tensor) -> Tensor:
    """``|x - part| / |x|`` in l2 for each image [B, ...]: float [B], from 0 where the part is all of the image."""
    distance, whole = (torch.linalg.vector_norm(values.flatten(1), dim=1) for values in (x - part, x))
    return distance / whole


def _make(context: PartContext) -> PartResult:
    network = split_network(context.run)
    own = [part for way, part in PARTS.items() if way in network.readings and part != "x"]

    @torch.no_grad()
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        split = network.split(x)
        parts = {"g": split.g, "r": split.r}
        found = {name: unexplained(split.x, part) for name, part in parts.items()}
        found |= {f"right {part}": network.classifier(part)(parts[part]).argmax(1) == y for part in own}
        return found

    with pieces(context, PART.name) as kept:
        found = kept.of("parts", work)
    numbers: dict[str, Any] = {
        name: {
            # The paper's definition, and the one that its code has.
            "accuracy": mean_std(1 - found[name].double()),
            "squared": mean_std(1 - found[name].double().square()),
        }
        for name in ("g", "r")
    }
    numbers["classification"] = {part: found[f"right {part}"].double().mean().item() for part in own}
    table = Table(title=f"{context.path.name}: reconstruction accuracy (percent, mean±std over images)")
    for heading in ("part", "1 - |x - part| / |x|", "1 - (|x - part| / |x|)^2", "classified rightly"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name in ("g", "r"):
        spreads = (numbers[name][key] for key in ("accuracy", "squared"))
        table.add_row(
            SHOWN[name],
            *(f"{percent(value['mean'])}±{percent(value['std'])}" for value in spreads),
            percent(numbers["classification"].get(name)),
        )
    return PartResult(numbers, [table])


PART = Part(
    "reconstruction",
    "how much of x lies in G(x) and in x - G(x), and the accuracy of the run's own classifiers (section 4)",
    _make,
    unfit=no_generator,
)
