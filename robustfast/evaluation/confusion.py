"""Which classes a model confuses, on natural images and under attack."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfast.evaluation.predictions import Predictions

__all__ = ["Confusions", "confusion", "confusions"]


@dataclass(frozen=True)
class Confusions:
    """How often an image of one class (row) was taken for another (column), int64 [K, K] by way.

    Attributes:
        images: how many images were counted.
        natural: on the images as they are.
        attacked: on images that attack the way itself.
    """

    images: int
    natural: dict[str, Tensor]
    attacked: dict[str, Tensor]


def confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes]: entry (i, j) counts the images of class i that were taken for j."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def confusions(predictions: Predictions, classes: int) -> Confusions:
    """The confusions of every way, from predictions under one attack.

    Raises:
        ValueError: predictions under another number of attacks.
    """
    (attacked,) = predictions.attacked.values()
    labels = predictions.labels

    def by_way(predicted: dict[str, Tensor]) -> dict[str, Tensor]:
        return {way: confusion(labels, found, classes) for way, found in predicted.items()}

    return Confusions(len(labels), by_way(predictions.natural), by_way(attacked.own))
