"""Table 1: how alike the parts of an image and of its attacked version are, one by one and as sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.evaluation.cdvae.attacked import attacked, in_words, mean_std
from robustfast.evaluation.cdvae.classifiers import no_generator, split_network
from robustfast.evaluation.inception import load_inception
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.models import ClassDisentangled, OneWay

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

__all__ = ["CLASSIFIER", "INCEPTION", "PART", "ClassifierFeatures", "frechet_distance"]

INCEPTION, CLASSIFIER = "inception-v3 pool", "classifier"

_ROWS = {"g": "G(x), G(x')", "r": "R(x), R(x')"}


class ClassifierFeatures(nn.Module):
    """What the last layer of a classifier sees of normalised images: [B, C, H, W] to float64 [B, H]."""

    def __init__(self, classifier: OneWay) -> None:
        super().__init__()
        self.network = classifier
        self.num_features = classifier.classifier.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x).double()


class InceptionFeatures(nn.Module):
    """The pool of the FID's Inception-v3 of normalised images, as pixels cut to [0, 1]: to float64 [B, 2048]."""

    def __init__(self, inception: nn.Module, normalisation: nn.Module) -> None:
        super().__init__()
        self.inception, self.normalisation = inception, normalisation
        self.num_features = inception.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.inception(self.normalisation.inverse(x).clamp(0, 1)).double()


class _Given(nn.Module):
    """In the place of a network: features as they are."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(num_features: int, device: torch.device | str = "cpu") -> FrechetInceptionDistance:
    """torchmetrics' streaming Frechet distance between Gaussians that are fitted to the features of two sets.

    ``update(features, real=True)`` and ``real=False`` fill the sets, 2 rows or more each, and ``compute()`` gives
    ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))`` (Dowson and Landau 1982; Heusel et al. 2017). Give float64 [B, F] for
    a result in float64.

    Args:
        num_features: F.
        device: of the features.
    """
    # Its import takes seconds, and evaluations without it do without.
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(_Given(num_features), normalize=True).to(device)


def _make(context: PartContext) -> PartResult:
    if context.images < 2:
        raise UserError(
            f"--images {context.images}: a distance of sets takes 2 images and more, give 2 or more"
        )
    network, by = split_network(context.run), attacked(context)
    features, kind = _features(context, network)
    distances = {part: frechet_distance(features.num_features, context.device) for part in _ROWS}
    cosines: dict[str, list[Tensor]] = {part: [] for part in _ROWS}
    with context.progress(context.images) as bar:
        for x, y, positions in context.batches(bar=bar):
            x_adv = by.attack(x, y, positions)
            with torch.no_grad():
                clean, moved = network.split(x), network.split(x_adv)
                for part, distance in distances.items():
                    pair = getattr(clean, part), getattr(moved, part)
                    distance.update(features(pair[0]), real=True)
                    distance.update(features(pair[1]), real=False)
                    flat = (images.flatten(1).double() for images in pair)
                    cosines[part].append(torch.cosine_similarity(*flat).cpu())
    numbers: dict[str, Any] = {
        part: {
            "cosine": mean_std(torch.cat(cosines[part])),
            # Not every build for GPUs has eigenvalues there. Rounding can take the distance of equal sets below zero.
            "distance": max(distance.to("cpu").compute().item(), 0.0),
        }
        for part, distance in distances.items()
    }
    numbers["features"] = kind
    numbers["attack"] = by.settings
    heading = "FID" if kind == INCEPTION else "Frechet distance of D's features"
    table = Table(title=f"{context.path.name}: likeness of parts", caption=in_words(by.settings))
    for title in ("parts of", "cosine (mean±std)", heading):
        table.add_column(title, justify="left" if title == "parts of" else "right")
    for part, title in _ROWS.items():
        cosine = numbers[part]["cosine"]
        table.add_row(title, f"{cosine['mean']:.4f}±{cosine['std']:.4f}", f"{numbers[part]['distance']:.4g}")
    if kind == CLASSIFIER:
        table.caption = (
            f"{table.caption}\nNo FID: --inception-weights FILE names the Inception-v3 that it takes"
        )
    return PartResult(numbers, [table])


def _features(
    context: PartContext, network: ClassDisentangled
) -> tuple[ClassifierFeatures | InceptionFeatures, str]:
    file = context.request.inception_weights
    if file is not None:
        inception = load_inception(file, context.device)
        return InceptionFeatures(inception, network.normalisation).eval(), INCEPTION
    part = "r" if "n" in network.readings else "g"
    return ClassifierFeatures(network.classifier(part)).eval(), CLASSIFIER


PART = Part(
    "similarity",
    "cosine and Frechet distance between parts of x and of attacked x (table 1)",
    _make,
    unfit=no_generator,
    takes=("source", "inception_weights", "steps"),
)
