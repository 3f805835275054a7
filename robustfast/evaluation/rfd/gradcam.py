"""Figure 1: where each encoder looks, on images and on what an attack makes of them, by Grad-CAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import eval_mode
from robustfast.evaluation.examples import one_of_each
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.picked import evaluated, picked
from robustfast.evaluation.rfd.judge import Judge, judge, judged_clean, no_discriminator
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.visualization.activation_maps import ActivationMap, activation_maps

__all__ = ["IMAGES", "PART", "Seen", "encoder_maps", "grad_cam", "upsampled"]

IMAGES = 4
ENCODERS = {"r": "robust", "n": "non-robust", "d": "domain-specific"}
DIGITS = 4
"""Decimals of the maps in the file, which are the ones that are drawn."""


@dataclass(frozen=True)
class Seen:
    """What one encoder makes of images.

    Attributes:
        maps: Grad-CAM, float32 [B, h, w] from 0 to 1, each image's largest value 1; 0 where nothing speaks for it.
        target: what the maps speak for: the class that the encoder's features are taken for, int64 [B]; of the
            domain-specific one whether the discriminator judges the image clean (1) or adversarial (0).
        score: the logit of this class, or the discriminator's (positive for clean), float32 [B].
    """

    maps: Tensor
    target: Tensor
    score: Tensor


def grad_cam(maps: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """relu(sum_k a_k A_k), a_k the mean over the places of d score / d A_k (Selvaraju et al. 2017, equations 1 and 2).

    Args:
        maps: A, activations [B, C, h, w]; not changed.
        score: maps -> [B], each of its own image alone. Networks inside belong in eval mode; their parameters get no
            gradient.

    Returns:
        [B, h, w], from 0 upwards, unscaled.
    """
    with torch.enable_grad():
        leaf = maps.detach().requires_grad_()
        (grad,) = torch.autograd.grad(score(leaf).sum(), leaf)
    weights = grad.mean((2, 3), keepdim=True)
    return (weights * maps.detach()).sum(1).relu()


def encoder_maps(both: Judge, x: Tensor) -> dict[str, Seen]:
    """Grad-CAM of the three encoders of a disentangled network.

    The robust and the non-robust features answer for the logit of the class that each is taken for, the domain-specific
    ones for the discriminator's logit, with the sign of what it judges. The paper names no targets.

    Args:
        both: the network and its discriminator; run in eval mode, put back as found.
        x: images [B, C, H, W].

    Returns:
        "r", "n" and "d" to what is seen, on the device of `x`.
    """
    model = both.model
    with eval_mode(both):
        with torch.no_grad():
            maps = model.maps(model.base(x))  # type: ignore[operator]
        return {name: _seen(name, both, maps[name]) for name in ENCODERS}


def _seen(name: str, both: Judge, maps: Tensor) -> Seen:
    def answers(values: Tensor) -> Tensor:
        """Logits [B, C], or the discriminator's [B]."""
        z = both.model.pooled({name: values})[name]  # type: ignore[operator]
        return both.discriminator(z).reshape(len(z)) if name == "d" else both.model.classifier(z)  # type: ignore[operator]

    with torch.no_grad():
        logits = answers(maps)
    if name == "d":
        target, score = judged_clean(logits).long(), logits
        found = grad_cam(maps, lambda values: answers(values) * (2 * target - 1))
    else:
        target, score = logits.argmax(1), logits.amax(1)
        found = grad_cam(maps, lambda values: answers(values).gather(1, target[:, None]))
    peak = found.amax((1, 2), keepdim=True)
    return Seen(found / torch.where(peak > 0, peak, 1), target, score)


def upsampled(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [B, h, w] at the size of the images, bilinear: [B, height, width]."""
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def _make(context: PartContext) -> PartResult:
    run, split = context.run, context.split
    both = judge(run)
    attack = pgd(run.model.way(run.config.main_way), radius(run), seed=context.request.seed)
    candidates = evaluated(context, context.images)
    positions = candidates[one_of_each(split.labels[candidates], min(IMAGES, len(candidates)))]
    records, rows = [], []
    with context.progress(len(positions)) as bar:
        for x, y, index in picked(context, positions, bar=bar):
            versions = {"clean": x, "adversarial": attack(x, y, index)}
            seen = {name: encoder_maps(both, images) for name, images in versions.items()}
            for place, label in enumerate(y.tolist()):
                record = {"position": int(index[place]), "label": label, "class": split.classes[label]}
                record |= {name: _record(found, place) for name, found in seen.items()}
                records.append(record)
                images = {name: version[place].cpu() for name, version in versions.items()}
                rows.append((split.classes[label], _cells(record, images, split.classes)))
    numbers: dict[str, Any] = {"eps": radius(run), "attack": described(attack), "images": records}
    headings = ["clean image", *ENCODERS.values(), None, "attacked image", *ENCODERS.values()]
    path = context.figure(PART.name)
    title = f"{context.path.name}: Grad-CAM of each encoder on clean and attacked images"
    return PartResult(numbers, figures=[activation_maps(rows, headings, path, title=title)])


def _record(seen: Mapping[str, Seen], place: int) -> dict[str, Any]:
    return {
        name: {
            "target": int(found.target[place]),
            "score": float(found.score[place]),
            "map": [[round(value, DIGITS) for value in line] for line in found.maps[place].tolist()],
        }
        for name, found in seen.items()
    }


def _cells(
    record: Mapping[str, Any], images: Mapping[str, Tensor], classes: tuple[str, ...]
) -> list[ActivationMap]:
    """The image and its maps, clean then attacked, drawn from what the file says."""
    cells = []
    for name, image in images.items():
        cells.append(ActivationMap(image))
        for encoder in ENCODERS:
            found = record[name][encoder]
            heat = upsampled(torch.tensor([found["map"]]), *image.shape[1:])[0]
            says = classes[found["target"]] if encoder != "d" else ("adversarial", "clean")[found["target"]]
            cells.append(ActivationMap(image, heat, says if heat.any() else f"{says} (map is 0)"))
    return cells


PART = Part(
    "gradcam",
    "Grad-CAM of each encoder on clean and attacked images (figure 1)",
    _make,
    unfit=no_discriminator,
)
