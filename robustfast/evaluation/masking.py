"""Signs that an attack failed where the model did not withstand: gradients that are masked, or a model that is random.

Source: Carlini et al. 2019 (arXiv:1902.06705), sections 3.1 and 4, and Athalye et al. 2018 (arXiv:1802.00420),
section 3.1. A warning is no proof, and none is no all-clear: each carries the numbers it rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import PGD
from robustfast.attacks.gradient import InputGradient, largest_entry
from robustfast.attacks.modes import eval_mode

__all__ = ["PROBE_IMAGES", "Curve", "Randomness", "find_warnings", "probe", "randomness", "stronger"]

PROBE_IMAGES = 128
"""Images the probes attack: enough to see 1 % of failures, few enough to be cheap beside the sweep."""

FEW_STEPS, MANY_STEPS = 2, 20
UNBOUNDED_STEPS = 50
ZERO_GRADIENT_SHARE = 0.05
"""From this share of images whose gradient was zero on, a warning."""

RISEN_SHARE = 0.5
"""Of how many images ten times the steps have to raise the loss: of nearly all where gradients are sound, of none where
only the start moves them."""

LATE_WINS, FEWEST_LATE_WINS = 0.002, 5
"""Share of images, the threshold of AutoAttack's authors, and number that Square must win last for a warning."""

# What two passes over the same images may differ in by the order of their sums, relative to the largest logit.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Curve:
    """What one attack did.

    Attributes:
        name: the attack's.
        kind: "single-step", "iterative", "black-box" or "noise".
        norm: of its balls.
        eps: rising, the first one 0.
        fooled: bool [len(eps), N]; images that were misclassified from the start count as fooled.
        zero: attacked images whose gradient was zero in some step, and which the attack did not fool.
        attacked: images attacked.
        minimal: whether it looks for the nearest image, and so stops where it has won.
        won_by: of an ensemble, at each eps, the images that each part was the first to win; None of any other attack.
    """

    name: str
    kind: str
    norm: str
    eps: Sequence[float]
    fooled: Tensor
    zero: int = 0
    attacked: int = 0
    minimal: bool = False
    won_by: Sequence[Mapping[str, int]] | None = None


@dataclass(frozen=True)
class Randomness:
    """What two passes over the same images differ in.

    Attributes:
        images: how many were looked at.
        labels: how many got two labels.
        logits: how many got logits further apart than rounding explains.
        largest: the largest difference of a logit.
    """

    images: int
    labels: int
    logits: int
    largest: float

    @property
    def random(self) -> bool:
        return self.logits > 0


def randomness(first: Tensor, second: Tensor) -> Randomness:
    """Compare two passes' logits [B, K]."""
    apart = (first.double() - second.double()).abs().amax(1).nan_to_num()
    scale = first.double().abs().amax(1).nan_to_num()
    return Randomness(
        len(first),
        int((first.argmax(1) != second.argmax(1)).sum()),
        int((apart > ROUNDING * scale.clamp(min=1e-12)).sum()),
        float(apart.max()) if len(first) else 0.0,
    )


def probe(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, index: Tensor, *, eps: float, seed: int
) -> dict[str, Any]:
    """Attack a few images in ways whose outcome is known where gradients are sound.

    Args:
        model: images -> logits.
        x, y, index: images [B, ...] that the model gets right, labels, positions in the split.
        eps: linf radius of the probe with few and with many steps.
        seed: of the random starts.

    Returns:
        "images"; "unbounded": how many survive PGD in the whole box; "few", "many": for each image 1 where PGD of
        `FEW_STEPS` and of `MANY_STEPS` steps of the same length fools it; "rose": of how many the cross entropy is
        larger after the many; "zero", "nonfinite": how many have such a gradient of the cross entropy at the image
        itself.
    """
    peaks = x.new_empty(len(x))
    gradient = InputGradient(model, model, "ce")
    with eval_mode(model), gradient.session(x.device):
        largest_entry(gradient([x.detach().requires_grad_()], y)[0], out=peaks)

    def attacked(**settings: Any) -> tuple[Tensor, Tensor]:
        """Whether each image is fooled, and its cross entropy."""
        x_adv = PGD(model, seed=seed, engine="eager", **settings)(x, y, index)
        with eval_mode(model):
            logits = gradient.logits(x_adv)
        return logits.argmax(1) != y, F.cross_entropy(logits, y, reduction="none")

    # The same step for both, so short that two of them cannot cross the ball.
    short = {"eps": eps, "step_size": eps / 10}
    unbounded, _ = attacked(eps=1.0, step_size=0.05, steps=UNBOUNDED_STEPS)
    few, before = attacked(steps=FEW_STEPS, **short)
    many, after = attacked(steps=MANY_STEPS, **short)
    return {
        "images": len(x),
        "unbounded": int((~unbounded).sum()),
        "few": few.int().tolist(),
        "many": many.int().tolist(),
        "rose": int((after > before).sum()),
        "zero": int((peaks == 0).sum()),
        "nonfinite": int((~peaks.isfinite()).sum()),
    }


def stronger(first: Tensor, second: Tensor) -> bool:
    """Whether the attack that fooled `first` bool [N] is stronger than the other beyond chance.

    Two standard deviations of McNemar's test over the images on which they differ: at least five, all on one side.
    """
    ours, theirs = int((first & ~second).sum()), int((second & ~first).sum())
    return ours - theirs > 2 * sqrt(ours + theirs)


def find_warnings(
    curves: Sequence[Curve],
    probes: Mapping[str, Any] | None,
    random: Randomness | None,
    *,
    eot: int = 1,
    probabilities: bool = False,
) -> list[dict[str, Any]]:
    """What does not fit together, each as {"check", "text", numbers...}.

    Args:
        curves: what each attack did, on the same images.
        probes: sums of what `probe` returned, with its "eps"; None where there was none.
        random: of the same images; None where it was not looked at.
        eot: passes an attack's gradient is averaged over.
        probabilities: whether the model's outputs look like some.
    """
    found = []
    if random is not None and random.random:
        found.append(_random(random, eot))
    if probabilities:
        found.append(
            {
                "check": "probabilities",
                "text": "the model's outputs are positive and sum to 1: give logits, from before the softmax, whose "
                "gradient does not vanish where the model is sure",
            }
        )
    found += _weaker(curves, "single-step", ("iterative",), "single-step-stronger")
    found += _weaker(curves, "black-box", ("iterative", "single-step"), "black-box-stronger")
    found += _weaker(curves, "noise", ("iterative", "single-step"), "noise-stronger")
    if probes is not None and "error" in probes:
        found.append(
            {
                "check": "no-gradient",
                "text": f"the model gives no gradient to attack along ({probes['error']}): what black-box attacks "
                f"leave right is all that is known; write an adaptive attack, through a differentiable stand-in",
                "images": probes["images"],
            }
        )
        probes = None
    found += [warning for curve in curves for warning in _late_wins(curve)]
    found += _unbounded(curves, probes)
    if probes is not None and probes["images"]:
        found += _no_decline(probes)
        found += _zero("at the image itself", probes["zero"], probes["images"])
    for curve in curves:
        # The gradient of a distance may be zero for good reasons.
        if curve.kind in ("single-step", "iterative") and not curve.minimal:
            found += _zero(curve.name, curve.zero, curve.attacked)
    return found


def _weaker(curves: Sequence[Curve], kind: str, rivals: Sequence[str], check: str) -> list[dict[str, Any]]:
    """Attacks of a kind that fool more than the strongest of their rivals, at the radius where they lead most."""
    found = []
    for curve in curves:
        if curve.kind != kind:
            continue
        worst: dict[str, Any] | None = None
        for position, eps in enumerate(curve.eps):
            others = [
                (other, other.fooled[list(other.eps).index(eps)])
                for other in curves
                if other.kind in rivals and other.norm == curve.norm and eps in other.eps and eps > 0
            ]
            if not others:
                continue
            best, fooled = max(others, key=lambda entry: int(entry[1].sum()))
            mine = curve.fooled[position]
            lead = (int(mine.sum()) - int(fooled.sum())) / len(mine)
            if stronger(mine, fooled) and (worst is None or lead > worst["lead"]):
                worst = {
                    "check": check,
                    "attack": curve.name,
                    "against": best.name,
                    "norm": curve.norm,
                    "eps": eps,
                    "accuracy": [_right(mine), _right(fooled)],
                    "lead": lead,
                }
        if worst is not None:
            ours, theirs = worst["accuracy"]
            worst["text"] = (
                f"{curve.name} ({kind}) is stronger than {worst['against']}, the strongest of the "
                f"{' and '.join(rivals)} attacks: {ours:.2%} of the images stay right against {theirs:.2%} at "
                f"{curve.norm} eps {worst['eps']:g}; {_because(kind)}"
            )
            found.append(worst)
    return found


def _late_wins(curve: Curve) -> list[dict[str, Any]]:
    """What Square won of an ensemble's images after attacks with gradients had left them."""
    found = []
    for position, parts in enumerate(curve.won_by or ()):
        wins, images = parts.get("square", 0), curve.fooled.shape[1]
        if wins >= FEWEST_LATE_WINS and wins > LATE_WINS * images:
            found.append(
                {
                    "check": "black-box-stronger",
                    "text": f"square, which sees no gradient, won {wins} of {images} images that the parts of "
                    f"{curve.name} before it had left at {curve.norm} eps {curve.eps[position]:g}; "
                    f"{_because('black-box')}",
                    "attack": curve.name,
                    "eps": curve.eps[position],
                    "wins": wins,
                    "images": images,
                }
            )
    return found[:1]


def _no_decline(probes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Many steps that find no more than two, where something else says that it is not the model that withstands."""
    images = probes["images"]
    few, many = (images - sum(probes[name]) for name in ("few", "many"))
    # Sound gradients leave some to the many steps; a model that two steps already break shows nothing.
    if not few or many < few:
        return []
    # A model that withstands at this eps gives such numbers too, but none of these signs.
    signs = []
    if probes["unbounded"]:
        signs.append(f"{probes['unbounded']} stay right even at eps 1")
    if (without := probes["zero"] + probes["nonfinite"]) > ZERO_GRADIENT_SHARE * images:
        signs.append(f"{without} have a gradient that is zero or not finite")
    if probes["rose"] < RISEN_SHARE * images:
        signs.append(f"the loss rose with the steps for {probes['rose']} only")
    if not signs:
        return []
    return [
        {
            "check": "no-decline-with-steps",
            "text": f"PGD of {MANY_STEPS} steps is no stronger than PGD of {FEW_STEPS} steps of the same length: "
            f"{many} and {few} of {images} images stay right at linf eps {probes['eps']:g}, where ten times the "
            f"steps should find more; and {', '.join(signs)}",
            "steps": [FEW_STEPS, MANY_STEPS],
            "eps": probes["eps"],
            "right": [few, many],
            "unbounded": probes["unbounded"],
            "without_gradient": without,
            "rose": probes["rose"],
            "images": images,
        }
    ]


def _unbounded(curves: Sequence[Curve], probes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = []
    if probes is not None and probes["unbounded"]:
        found.append(
            {
                "check": "accuracy-at-unbounded-eps",
                "text": f"{probes['unbounded']} of {probes['images']} images stay right under PGD with linf eps 1, "
                f"which may make any image of any other: expected 0",
                "right": probes["unbounded"],
                "images": probes["images"],
            }
        )
    for curve in curves:
        # Few queries cannot be expected to reach every image, nor one step or noise.
        if curve.norm == "linf" and 1.0 in curve.eps and curve.kind == "iterative":
            fooled = curve.fooled[list(curve.eps).index(1.0)]
            if not fooled.all():
                found.append(
                    {
                        "check": "accuracy-at-unbounded-eps",
                        "text": f"{_right(fooled):.2%} of the images stay right under {curve.name} with linf eps 1, "
                        f"which may make any image of any other: expected 0",
                        "attack": curve.name,
                        "right": int((~fooled).sum()),
                        "images": len(fooled),
                    }
                )
    return found


def _zero(where: str, zero: int, images: int) -> list[dict[str, Any]]:
    if not images or zero / images <= ZERO_GRADIENT_SHARE:
        return []
    at_image = where.startswith("at ")
    met = where if at_image else f"in some step of {where} and stayed right"
    return [
        {
            "check": "zero-gradients",
            "text": f"{zero} of {images} images ({zero / images:.2%}) had a gradient of zero "
            f"{met}: an attack cannot move them; look for "
            f"rounding, hard thresholds or saturated outputs in the model, or attack the logits' margin",
            "attack": None if at_image else where,
            "zero": zero,
            "images": images,
        }
    ]


def _random(random: Randomness, eot: int) -> dict[str, Any]:
    then = (
        f"gradients are averaged over {eot} passes (--eot {eot}); raise it until the numbers stop falling"
        if eot > 1
        else "attacks that take the model as fixed overrate it: give --eot 20, which averages gradients over 20 passes "
        "and takes AutoAttack's version rand"
    )
    return {
        "check": "randomised-model",
        "text": f"two passes over the same {random.images} images differ in {random.logits} of them (labels in "
        f"{random.labels}, logits by up to {random.largest:.3g}): {then}, and write an "
        f"adaptive attack on what is random",
        "images": random.images,
        "labels": random.labels,
        "logits": random.logits,
        "largest": random.largest,
        "eot": eot,
    }


def _because(kind: str) -> str:
    return {
        "single-step": "an iterative attack starts with such a step and should do no worse",
        "black-box": "who sees the gradient should do no worse than who does not",
        "noise": "random noise should find less than who looks for the direction",
    }[kind]


def _right(fooled: Tensor) -> float:
    return int((~fooled).sum()) / len(fooled)
