"""The arithmetic of the AAT protocol: accuracies, DIA and detection, from predicted labels alone.

All results are fractions in float64 (Python floats); all predictions and labels are int64 [N].
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["accuracy", "detection", "dia", "flagged"]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of `predicted` int64 [N] equal to `labels` int64 [N], as a fraction.

    Raises:
        ValueError: the shapes differ or there is nothing to count.
    """
    if predicted.shape != labels.shape or predicted.ndim != 1:
        shapes = f"{list(predicted.shape)} and {list(labels.shape)}"
        raise ValueError(f"predictions and labels must both be [N], got {shapes}")
    if labels.numel() == 0:
        raise ValueError("accuracy of no images is undefined: expected at least one")
    return int((predicted == labels).sum()) / labels.numel()


def dia(robust: float | None, non_robust: float | None) -> float | None:
    """Difference in accuracy, R - N under attack (AAT section 2.5); None where one of the two was not measured."""
    return None if robust is None or non_robust is None else robust - non_robust


def flagged(predicted: Mapping[str, Tensor]) -> Tensor:
    """D(x) = 1 where the robust and the non-robust way disagree (AAT eq. 12).

    Args:
        predicted: labels int64 [N] of the ways "r" and "n".

    Returns:
        bool [N], True where x is called adversarial.
    """
    return predicted["r"] != predicted["n"]


def detection(
    natural: Mapping[str, Tensor], adversarial: Mapping[str, Tensor], labels: Tensor
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Detection and calibration by eq. 12, on the 50/50 mixture and on its adversarial half alone.

    The mixture holds each image twice, as it is and attacked through the standard way, so that both halves weigh the
    same. Raw predictions are h_s; calibrated ones are h_r where the image is flagged and h_s elsewhere.

    Args:
        natural: predicted labels int64 [N] of the ways "s", "r", "n" on the natural images.
        adversarial: the same on the standard-way adversarial images.
        labels: true labels int64 [N].

    Returns:
        (mixture, adversarial half), each with tpr, fpr, balanced_accuracy, raw, calibrated. The adversarial half has no
        natural image, so its fpr and balanced_accuracy are None.
    """
    half = {"natural": natural, "adversarial": adversarial}
    rate = {name: int(flagged(ways).sum()) / labels.numel() for name, ways in half.items()}
    raw = {name: accuracy(ways["s"], labels) for name, ways in half.items()}
    calibrated = {
        name: accuracy(torch.where(flagged(ways), ways["r"], ways["s"]), labels)
        for name, ways in half.items()
    }
    mixture: dict[str, float | None] = {
        "tpr": rate["adversarial"],
        "fpr": rate["natural"],
        "balanced_accuracy": (rate["adversarial"] + 1.0 - rate["natural"]) / 2,
        "raw": (raw["natural"] + raw["adversarial"]) / 2,
        "calibrated": (calibrated["natural"] + calibrated["adversarial"]) / 2,
    }
    adversarial_half: dict[str, float | None] = {
        "tpr": rate["adversarial"],
        "fpr": None,
        "balanced_accuracy": None,
        "raw": raw["adversarial"],
        "calibrated": calibrated["adversarial"],
    }
    return mixture, adversarial_half
