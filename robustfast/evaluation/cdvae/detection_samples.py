"""What detectors are tried on: attacked images, the images themselves, and images with noise that fools nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from robustfast.attacks import BIM, FGSM, PGDC, Attack, MarginPGD, eval_mode
from robustfast.attacks.draws import normal
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NamedAttack
from robustfast.evaluation.cdvae import threat
from robustfast.evaluation.detectors.parts import PartModel
from robustfast.evaluation.parts import PartContext
from robustfast.evaluation.picked import evaluated, picked
from robustfast.evaluation.pieces import Pieces
from robustfast.models.class_disentangled import Normalisation
from robustfast.seeds import derive

__all__ = ["ATTACKS", "NoiseRule", "Samples", "Triple", "attacks", "described", "kept", "noisy", "samples"]

STEPS = 5
"""Of the iterative attacks."""
KAPPA = 1000.0
"""The lead at which the margin attack stops: as good as none."""
ATTACKS = ("fgsm", "bim", "cw", "pgd-linf", "pgd-l2")
"""Columns of tables 4 and 5."""
CALIBRATED_ON = 500
"""Images on which the level of the noise is found where it is to be as long as the attack."""

_KNOWN = {"fgsm": "fgsm", "bim": "bim", "cw": "cw-pgd", "pgd-linf": "pgd-c", "pgd-l2": "pgd-c"}

NoiseRule = Literal["fixed", "equal"]
"""Noise of the paper's level, or as long as the attack in the mean over the images."""


def attacks(model: Callable[[Tensor], Tensor], context: PartContext) -> dict[str, Attack]:
    """The five attacks of tables 4 and 5 on a model: steps of eps / sqrt(steps), as in the paper's code, where the text
    reads eps / sqrt(2).

    FGSM and BIM start at the image, the others at random in the ball; C&W is PGD on the margin of the logits.
    """
    run, seed = context.run, context.request.seed
    linf, l2 = threat.linf(run), threat.l2(run)
    steps = context.steps(STEPS)
    step = {"steps": steps, "relative_step": steps**-0.5}
    return {
        "fgsm": FGSM(model, eps=linf, seed=seed),
        "bim": BIM(model, eps=linf, seed=seed, **step),
        "cw": MarginPGD(model, eps=linf, kappa=KAPPA, seed=seed, **step),
        "pgd-linf": PGDC(model, eps=linf, steps=steps, seed=seed),
        "pgd-l2": PGDC(model, eps=l2, steps=steps, norm="l2", seed=seed),
    }


def described(name: str, attack: Attack) -> dict[str, Any]:
    """Every setting of one of them, defaults included, as plain values for the file."""
    settings = NamedAttack(name, _KNOWN[name], attack.norm).as_json(attack)
    return {key: value for key, value in settings.items() if key != "name"}


def noisy(x: Tensor, level: float, index: Tensor, normalisation: Normalisation, *, seed: int) -> Tensor:
    """Images with normal noise, drawn in normalised space and clipped to the pixels that there are.

    Args:
        x: [B, C, H, W] in [0, 1].
        level: standard deviation, of normalised values.
        index: int64 [B], positions that key the draws.
        normalisation: of the network.
        seed: of the draws.

    Returns:
        Images like `x`.
    """
    noise = normal(index, tuple(x.shape[1:]), seed=derive(seed, "detection noise"), dtype=x.dtype)
    return normalisation.inverse(normalisation(x) + level * noise).clamp(0, 1).to(x.dtype)


def kept(labels: Tensor, clean: Tensor, with_noise: Tensor, attacked: Tensor) -> Tensor:
    """The images that detectors are tried on: classified right as they are and with noise, wrong under attack.

    Args:
        labels: int64 [N].
        clean, with_noise, attacked: the classes that the model names, int64 [N].

    Returns:
        bool [N].
    """
    return (clean == labels) & (with_noise == labels) & (attacked != labels)


@dataclass(frozen=True)
class Triple:
    """One batch of kept images: float32 [B, C, H, W] in [0, 1] each, with their positions in the split, int64 [B]."""

    clean: Tensor
    noisy: Tensor
    attacked: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Samples:
    """What one attack leaves to try detectors on.

    Attributes:
        model: the classifier that was attacked.
        attack: of `attacks`.
        level: of the noise.
        positions: of the kept images, int64 [K] in their order.
        numbers: how it came to them, as plain values.
    """

    context: PartContext
    model: PartModel
    attack: Attack
    level: float
    positions: Tensor
    numbers: dict[str, Any]

    def triple(self, x: Tensor, y: Tensor, positions: Tensor) -> Triple:
        """Images [B, C, H, W] of the split at `positions`, with what was made of them when they were chosen."""
        noise = noisy(
            x, self.level, positions, self.model.network.normalisation, seed=self.context.request.seed
        )
        return Triple(x, noise, self.attack(x, y, positions), positions)


def samples(
    context: PartContext,
    kept_pieces: Pieces,
    model: PartModel,
    name: str,
    *,
    rule: NoiseRule = "fixed",
) -> Samples:
    """Attack a classifier by one of `ATTACKS`, add noise to the same images, and keep those to try detectors on.

    Kept batch by batch: an interruption loses one.

    Args:
        context: of the part.
        kept_pieces: where the batches are kept.
        model: the attacked classifier, of images in [0, 1].
        name: of the attack.
        rule: "fixed": noise of `threat.noise_level`. "equal": of the level at which it is as long in l2 as the attack,
            by the means over the images, which is how the authors of LID set theirs.

    Raises:
        UserError: no noise is as long as the attack.
    """
    attack = attacks(model, context)[name]
    normalisation = model.network.normalisation
    seed = context.request.seed
    settings = described(name, attack)

    def attacked(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = attack(x, y, positions)
        with eval_mode(model), torch.no_grad():
            return {
                "label": y,
                "clean": model(x).argmax(1),
                "attacked": model(images).argmax(1),
                "l2": _length(images, x, normalisation),
            }

    found = kept_pieces.of(f"{model.part}, {name}", attacked, models=[model], attack=settings)
    length = found["l2"].double().mean().item()
    level = threat.noise_level(name) if rule == "fixed" else _as_long(context, normalisation, length)

    def with_noise(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = noisy(x, level, positions, normalisation, seed=seed)
        with eval_mode(model), torch.no_grad():
            return {"noisy": model(images).argmax(1), "l2": _length(images, x, normalisation)}

    noise = kept_pieces.of(f"{model.part}, noise beside {name}", with_noise, models=[model], level=level)
    label = found["label"]
    chosen = kept(label, found["clean"], noise["noisy"], found["attacked"])
    accuracy = {
        "clean": found["clean"] == label,
        "noisy": noise["noisy"] == label,
        "attacked": found["attacked"] == label,
    }
    numbers = {
        **{key: right.double().mean().item() for key, right in accuracy.items()},
        "images": len(label),
        "kept": int(chosen.sum()),
        "noise": level,
        "noise_l2": noise["l2"].double().mean().item(),
        "attack_l2": length,
        "attack": settings,
    }
    positions = evaluated(context, context.images)[chosen]
    return Samples(context, model, attack, level, positions, numbers)


def _length(images: Tensor, x: Tensor, normalisation: Normalisation) -> Tensor:
    """l2 of the change of each image in normalised space, [B]."""
    return ((images - x) / normalisation.std).flatten(1).norm(dim=1)


def _as_long(context: PartContext, normalisation: Normalisation, length: float) -> float:
    """The level at which noise changes images by `length`, by bisection: what is clipped makes it shorter than its
    level says."""
    x, positions = (
        torch.cat(values)
        for values in zip(
            *((x, at) for x, _, at in picked(context, evaluated(context, CALIBRATED_ON))), strict=True
        )
    )

    def change(level: float) -> float:
        images = noisy(x, level, positions, normalisation, seed=context.request.seed)
        return _length(images, x, normalisation).double().mean().item()

    low, high = 0.0, 1.0
    while change(high) < length:
        low, high = high, 2 * high
        if high > 1e3:
            raise UserError(
                f"no noise changes these images by {length:.3g} in l2 as the attack does; try --parts detection"
            )
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) < length else (low, middle)
    return (low + high) / 2
