"""A few images with everything that can be seen of them: attacked, the perturbation magnified, gradient maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustfast.attacks import eval_mode
from robustfast.evaluation.attacks import EvaluationAttack
from robustfast.evaluation.gradient_maps import gradient_map
from robustfast.models import Network

__all__ = ["Examples", "WayExamples", "make_examples", "one_of_each"]


@dataclass(frozen=True)
class WayExamples:
    """What one way makes of the images; float32 [N, C, H, W] in [0, 1] and int64 [N], on the CPU.

    Attributes:
        way: "s", "r" or "n".
        natural, attacked: the labels it predicts for the images, and for those that attack it.
        adversarial: the images that attack it.
        perturbation: adversarial minus natural, magnified about middle grey.
        gradient: the map of its input gradient on the natural images.
    """

    way: str
    natural: Tensor
    attacked: Tensor
    adversarial: Tensor
    perturbation: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Examples:
    """Images of the test split, on the CPU.

    Attributes:
        images: float32 [N, C, H, W] in [0, 1].
        labels: int64 [N].
        positions: of each in the test split, int64 [N].
        ways: one entry for each trained way.
        magnification: factor by which perturbations are magnified.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    ways: tuple[WayExamples, ...]
    magnification: float


def one_of_each(labels: Tensor, count: int) -> Tensor:
    """Positions int64 [count] of images that show as many classes as there is room for.

    Classes at even distances, of each its first image; with more images than classes their second ones, and so on.
    At most all of `labels`, int64 [N].
    """
    classes = labels.unique()
    if count < len(classes):
        classes = classes[torch.arange(count) * len(classes) // count]
    members = [(labels == label).nonzero().flatten() for label in classes]
    rounds = max(map(len, members))
    turns = [member[turn] for turn in range(rounds) for member in members if turn < len(member)]
    return torch.stack(turns[:count])


def make_examples(
    model: Network, ways: str, x: Tensor, y: Tensor, positions: Tensor, attack: EvaluationAttack
) -> Examples:
    """Attack a handful of images through each way and look at the gradients.

    Args:
        model: the model; run in eval mode.
        ways: the ways that were trained.
        x: images in [0, 1], float32 [N, C, H, W], on the model's device.
        y: labels, int64 [N].
        positions: of the images in the test split, int64 [N]; they key the draws, so that these are the very
            adversarial images that an evaluation of the whole split meets.
        attack: the attack.
    """
    adversarial = attack.build(model, ways)(x, y, positions)
    change = {way: images - x for way, images in adversarial.items()}
    reach = max(float(delta.abs().max()) for delta in change.values())
    if attack.strength.norm == "linf":
        reach = attack.strength.eps
    magnification = 0.5 / reach if reach > 0 else 1.0
    seen = []
    for way in ways:
        classify = model.way(way)
        with eval_mode(model), torch.no_grad():
            natural, attacked = classify(x).argmax(1), classify(adversarial[way]).argmax(1)
        seen.append(
            WayExamples(
                way,
                natural.cpu(),
                attacked.cpu(),
                adversarial[way].cpu(),
                (0.5 + magnification * change[way]).clamp(0, 1).cpu(),
                gradient_map(classify, x, y).cpu(),
            )
        )
    return Examples(x.cpu(), y.cpu(), positions.cpu(), tuple(seen), magnification)
