"""The AAT protocol: three ways on natural images, under attack, and as a detector.

Source: AAT sections 2.4, 2.5 and 3.1, appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from robustfast.attacks import eval_mode
from robustfast.evaluation.metrics import accuracy, detection, dia
from robustfast.models import ThreeWay

__all__ = ["AttackedPredictions", "Predictions", "aat_numbers", "predict"]

_DETECTION_KEYS = ("tpr", "fpr", "balanced_accuracy", "raw", "calibrated")


class Attack(Protocol):
    """Attacks several ways at once, as `robustfast.attacks.ThreeWayPGD`: way -> adversarial images."""

    def __call__(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> Mapping[str, Tensor]: ...


@dataclass
class AttackedPredictions:
    """Predicted labels int64 [N] under one attack.

    Attributes:
        own: way to its predictions on images that attack this very way.
        standard: way to its predictions on images that attack the standard way; empty if that way was not trained.
        zero_gradient, nonfinite_gradient: attacked images that met such a gradient at some step.
    """

    own: dict[str, Tensor] = field(default_factory=dict)
    standard: dict[str, Tensor] = field(default_factory=dict)
    zero_gradient: int = 0
    nonfinite_gradient: int = 0


@dataclass
class Predictions:
    """Everything the protocol's arithmetic needs: true labels, predictions per way, and those under each attack."""

    labels: Tensor
    natural: dict[str, Tensor]
    attacked: dict[str, AttackedPredictions]


def predict(
    model: ThreeWay,
    batches: Iterable[Any],
    attacks: Mapping[str, Attack],
    *,
    ways: str = "srn",
    on_batch: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Predict natural and attacked images by every trained way; the model is in eval mode meanwhile.

    Args:
        model: the three-way model.
        batches: of `robustfast.data.Batch`: x float32 [B, C, H, W] in [0, 1], y int64 [B], index int64 [B].
        attacks: name to an attack on `ways`.
        ways: the ways that were trained; the others are neither attacked nor predicted.
        on_batch: called after each batch and attack with the number of images attacked, for a progress bar.

    Returns:
        Predictions on the CPU.
    """
    labels: list[Tensor] = []
    natural: list[dict[str, Tensor]] = []
    own: dict[str, list[dict[str, Tensor]]] = {name: [] for name in attacks}
    standard: dict[str, list[dict[str, Tensor]]] = {name: [] for name in attacks}
    counts = {name: [0, 0] for name in attacks}
    with eval_mode(model):
        for batch in batches:
            labels.append(batch.y)
            natural.append(_labels(model, batch.x, ways))
            for name, attack in attacks.items():
                x_adv = attack(batch.x, batch.y, batch.index)
                report = getattr(attack, "report", None)
                if report is not None:
                    counts[name][0] += int(report.zero_gradient)
                    counts[name][1] += int(report.nonfinite_gradient)
                through_standard = _labels(model, x_adv["s"], ways) if "s" in ways else {}
                standard[name].append(through_standard)
                # The standard way's own attack is the standard-way attack: predict it once.
                own[name].append(
                    {
                        way: through_standard["s"] if way == "s" else _labels(model, x_adv[way], way)[way]
                        for way in ways
                    }
                )
                on_batch(len(batch.y))
    return Predictions(
        torch.cat(labels).cpu(),
        _concatenate(natural),
        {
            name: AttackedPredictions(_concatenate(own[name]), _concatenate(standard[name]), *counts[name])
            for name in attacks
        },
    )


def aat_numbers(predictions: Predictions) -> tuple[dict[str, float | None], dict[str, dict[str, Any]]]:
    """The protocol's numbers from predictions: fractions, None for what a missing way leaves undefined.

    Returns:
        Natural accuracies by way, and per attack its "adversarial", "standard_way", "detection" and
        "detection_adversarial".
    """
    labels = predictions.labels

    def accuracies(predicted: Mapping[str, Tensor], ways: str) -> dict[str, float | None]:
        return {way: accuracy(predicted[way], labels) if way in predicted else None for way in ways}

    numbers = {}
    for name, attacked in predictions.attacked.items():
        adversarial = accuracies(attacked.own, "rn")
        standard_way = accuracies(attacked.standard, "srn")
        if set("srn") <= set(attacked.standard):
            mixture, half = detection(predictions.natural, attacked.standard, labels)
        else:
            mixture, half = dict.fromkeys(_DETECTION_KEYS), dict.fromkeys(_DETECTION_KEYS)
        numbers[name] = {
            "adversarial": {**adversarial, "dia": dia(adversarial["r"], adversarial["n"])},
            "standard_way": {**standard_way, "dia": dia(standard_way["r"], standard_way["n"])},
            "detection": mixture,
            "detection_adversarial": half,
        }
    return accuracies(predictions.natural, "srn"), numbers


def _labels(model: ThreeWay, x: Tensor, ways: str) -> dict[str, Tensor]:
    with torch.no_grad():
        return {way: logits.argmax(dim=1) for way, logits in model.ways(x, ways).items()}


def _concatenate(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {way: torch.cat([batch[way] for batch in batches]).cpu() for way in batches[0]}
