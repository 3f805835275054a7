"""Figure 4: how the values of the domain-specific features lie, of images and of what an attack makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast.evaluation.examples import one_of_each
from robustfast.evaluation.features import collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.picked import evaluated, picked
from robustfast.evaluation.rfd.judge import no_discriminator
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.visualization.histogram_pairs import HistogramPair, histogram_pairs

__all__ = ["BINS", "IMAGES", "PART", "SAMPLED", "counts", "overlap"]

BINS = 50
"""The paper does not say how many."""
IMAGES = 500
SAMPLED = 3


def counts(values: Tensor, edges: Tensor) -> Tensor:
    """How many of `values` lie in each bin, int64 [bins]; the lower edge is within, the upper only of the last.

    Args:
        values: float, any shape, between the outer edges.
        edges: float [bins + 1], rising.
    """
    inside = torch.bucketize(values.flatten().double(), edges.double(), right=True) - 1
    bins = len(edges) - 1
    return torch.bincount(inside.clamp(0, bins - 1), minlength=bins)


def overlap(one: Tensor, other: Tensor) -> float:
    """The area that two histograms share, from 0 to 1: counts [bins], neither of them empty."""
    return torch.minimum(one / one.sum(), other / other.sum()).sum().item()


def _make(context: PartContext) -> PartResult:
    run, split = context.run, context.split
    model, way = run.model, run.model.way(run.config.main_way)
    attack = pgd(way, radius(run), seed=context.request.seed)
    positions = evaluated(context, IMAGES)
    with context.progress(2 * len(positions)) as bar:
        clean, attacked = (
            collect(
                lambda x: model.encode(x, "d")["d"],
                picked(context, positions, bar=bar),
                attack=made_by,
                model=way,
            ).values
            for made_by in (None, attack)
        )
    both = torch.cat([clean, attacked])
    low, high = both.min().item(), both.max().item()
    edges = torch.linspace(low, high if high > low else low + 1, BINS + 1, dtype=torch.float64)
    sampled = one_of_each(split.labels[positions], min(SAMPLED, len(positions)))
    groups = {f"all {len(positions)} images": slice(None)}
    groups |= {
        f"image {int(positions[k])}, class {split.classes[split.labels[positions[k]]]}": k for k in sampled
    }
    histograms: list[dict[str, Any]] = []
    for name, chosen in groups.items():
        pair = counts(clean[chosen], edges), counts(attacked[chosen], edges)
        histograms.append(
            {
                "name": name,
                "clean": pair[0].tolist(),
                "adversarial": pair[1].tolist(),
                "overlap": overlap(*pair),
            }
        )
    numbers = {
        "eps": radius(run),
        "attack": described(attack),
        "images": len(positions),
        "features": clean.shape[1],
        "edges": edges.tolist(),
        "histograms": histograms,
    }
    path = context.figure(PART.name)
    title = f"{context.path.name}: values of the {clean.shape[1]} domain-specific features"
    drawn = [HistogramPair(h["name"], h["clean"], h["adversarial"]) for h in histograms]
    return PartResult(numbers, figures=[histogram_pairs(drawn, numbers["edges"], path, title=title)])


PART = Part(
    "histograms",
    "histograms of the domain-specific features, clean and attacked (figure 4)",
    _make,
    unfit=no_discriminator,
)
