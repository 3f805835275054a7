"""What the analyses of perturbations share: the attack that makes them, and how a set of values is summed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks import Attack
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.cdvae.classifiers import split_network
from robustfast.evaluation.cdvae.threat import linf
from robustfast.evaluation.parts import PartContext
from robustfast.models.class_disentangled import Split

__all__ = ["IMAGES", "STEPS", "Attacked", "attacked", "check_classes", "in_words", "mean_std", "of_both"]

STEPS = 20
"""The paper does not say how many for its analysis."""


IMAGES = ("x", "g", "r", "x_adv", "g_adv", "r_adv", "delta", "delta_g", "delta_r")
"""What `of_both` gives, in the order of table 2 and figure 2."""


@dataclass(frozen=True)
class Attacked:
    """An attack on a model.

    Attributes:
        attack: called as ``attack(x, y, positions)``.
        model: images to logits, what it goes through.
        settings: all of it as plain values for the file, with "model", what it goes through in words.
    """

    attack: Attack
    model: Callable[[Tensor], Tensor]
    settings: dict[str, Any]


def attacked(context: PartContext) -> Attacked:
    """PGD under linf as the paper's code has it, on the classifier D(x - G(x)) of the run, or on the model of
    ``--source``, as its tables 1 and 2 and figure 3 attack a classifier of x. A run without D is attacked through the
    classifier that it has.

    Raises:
        UserError: the model of ``--source`` names other classes.
    """
    network = split_network(context.run)
    way = "n" if "n" in network.readings else context.run.config.main_way
    model, title = network.way(way), {"n": "D(x - G(x))", "r": "D_G(G(x))"}.get(way, f"way {way}")
    if context.request.source is not None:
        model, title = context.source(), context.request.source
        check_classes(context, model, network.way(way))
    named = parse(f"pgd-c{context.steps(STEPS)}")
    attack = named.build(model, linf(context.run), seed=context.request.seed)
    return Attacked(attack, model, {**named.as_json(attack), "model": title})


def of_both(clean: Split, moved: Split) -> dict[str, Tensor]:
    """The parts of images and of attacked ones and their differences, clean minus attacked (equation 6), by `IMAGES`:
    each [B, C, H, W], normalised."""
    parts = ("x", "g", "r")
    names = {"x": "delta", "g": "delta_g", "r": "delta_r"}
    return {
        **{part: getattr(clean, part) for part in parts},
        **{f"{part}_adv": getattr(moved, part) for part in parts},
        **{names[part]: getattr(clean, part) - getattr(moved, part) for part in parts},
    }


def in_words(settings: dict[str, Any]) -> str:
    """The settings of `Attacked` in a few words, for a heading."""
    model = settings["model"]
    # Of a run folder its name.
    title = Path(model).name if Path(model).is_dir() else model
    return f"PGD-{settings['steps']} at linf {settings['eps']:.4g} on {title}"


def mean_std(values: Tensor) -> dict[str, float]:
    """Mean and standard deviation (of the set itself, by N) of float [N]."""
    wide = values.double()
    return {"mean": wide.mean().item(), "std": wide.std(correction=0).item()}


def check_classes(
    context: PartContext, source: Callable[[Tensor], Tensor], own: Callable[[Tensor], Tensor]
) -> None:
    """Refuse a model of ``--source`` that gives other logits for an image than `own`, a model of the run.

    Raises:
        UserError: it does.
    """
    x = next(context.batches())[0][:1]
    with torch.no_grad():
        theirs, ours = source(x), own(x)
    if theirs.shape != ours.shape:
        raise UserError(
            f"--source {context.request.source}: it gives {list(theirs.shape)} for one image, expected the "
            f"{ours.shape[1]} logits of {context.path}"
        )
