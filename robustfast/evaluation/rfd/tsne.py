"""Figures 3, 5, 7 and 8: the features of images, and of what an attack makes of them, in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks import PGD
from robustfast.errors import UserError
from robustfast.evaluation.embedding import COMPONENTS, embed, perplexity_for
from robustfast.evaluation.features import Features, collect
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.picked import evaluated, of_class, picked
from robustfast.evaluation.progress import AttackBar
from robustfast.evaluation.rfd.judge import no_discriminator, robust_features
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.training.run_folder import Run
from robustfast.visualization.point_groups import Panel, PointGroup, point_groups
from robustfast.visualization.style import COLOURS, SERIES, class_colours

__all__ = ["ATTACKED", "IMAGES", "PART", "SHOWN", "embedded", "shown_classes"]

IMAGES = 500
"""Samples of figure 3; of one class at most half as many, as each is four points there."""
SHOWN = 6
"""The class of figures 5 and 8: frog in CIFAR-10, as in figure 5; figure 8 does not name its own."""
ATTACKED = (7, 9)
"""The classes whose attacked images figure 7 shows: horse and truck in CIFAR-10."""
DIGITS = 3
"""Decimals of the points in the file, which are the ones that are drawn."""

Points = list[list[float]]

_PLAIN = "#e3b7a0"
"""Clean images where colour tells what attacked ones are taken for: flesh, as in figure 8."""


def shown_classes(classes: int) -> tuple[int, tuple[int, ...]]:
    """The class of figures 5 and 8 and those attacked in figure 7, of so many classes."""
    return min(SHOWN, classes - 1), tuple(sorted({min(label, classes - 1) for label in ATTACKED}))


def embedded(groups: Mapping[str, Tensor], *, seed: int) -> dict[str, Any]:
    """One t-SNE of all groups together.

    Args:
        groups: float [N, H] by name, at least four rows in all.
        seed: of its draws.

    Returns:
        "perplexity", and under each name its points, as lists.
    """
    whole = torch.cat(list(groups.values()))
    pieces = embed(whole, seed=seed).split([len(values) for values in groups.values()])
    points = {
        name: [[round(value, DIGITS) for value in point] for point in piece.tolist()]
        for name, piece in zip(groups, pieces, strict=True)
    }
    return {"perplexity": perplexity_for(len(whole)), **points}


def _make(context: PartContext) -> PartResult:
    run, seed = context.run, context.request.seed
    names = context.split.classes
    one, attacked = shown_classes(len(names))
    several, alike = evaluated(context, IMAGES), of_class(context, one, IMAGES // 2)
    _enough(context, several, alike)
    runs = _runs(context)
    with context.progress(2 * len(runs) * (len(several) + len(alike))) as bar:
        everything = _seen(context, run, several, bar)
        of_one = _seen(context, run, alike, bar)
        robust = {context.path.name: tuple(_part_of(pair, "r") for pair in (everything, of_one))}
        for label, other in runs.items():
            if other is not run:
                robust[label] = _seen(context, other, several, bar), _seen(context, other, alike, bar)
    # The runs that stand beside this one to its left, as in the paper.
    robust = {label: robust[label] for label in reversed(robust)}
    numbers: dict[str, Any] = {
        "eps": radius(run),
        "attack": described(_attack(context, run)),
        "components": COMPONENTS,
        "images": len(several),
        "domain_specific": embedded(
            {name: f.values["d"] for name, f in zip(_KINDS, everything, strict=True)}, seed=seed
        ),
        "class": names[one],
        "class_images": len(alike),
        "one_class": embedded(
            {
                f"{which} {name}": f.values[key]
                for key, which in {"r": "robust", "n": "non-robust"}.items()
                for name, f in zip(_KINDS, of_one, strict=True)
            },
            seed=seed,
        ),
        "classes": {label: _all_classes(pair, attacked, names, seed) for label, (pair, _) in robust.items()},
        "predictions": {label: _predictions(pair, seed) for label, (_, pair) in robust.items()},
    }
    return PartResult(numbers, figures=_figures(context, numbers))


_KINDS = ("clean", "adversarial")

Pair = tuple[Features[Any], Features[Any]]


def _enough(context: PartContext, several: Tensor, alike: Tensor) -> None:
    if len(several) < 2 or len(alike) < 2:
        raise UserError(
            f"--images {context.images} leaves {len(alike)} of one class; t-SNE takes 2 and more, give 2 or more"
        )


def _runs(context: PartContext) -> dict[str, Run]:
    """This run and those of --against, by label."""
    runs = {context.path.name: context.run}
    for label, run in context.others().items():
        if label in runs:
            raise UserError(
                f"--against: {label} is this run's own name; give another one as LABEL={run.path}"
            )
        if (theirs := run.config.dataset) != (ours := context.run.config.dataset):
            raise UserError(
                f"--against {label}: trained on {theirs}, this run on {ours}; name runs of {ours}"
            )
        runs[label] = run
    return runs


def _seen(context: PartContext, run: Run, positions: Tensor, bar: AttackBar) -> Pair:
    """Features of the images and of their attacked versions: of a disentangled network by name, else what the
    classifier sees. Each run is attacked through itself."""
    way = run.model.way(run.config.main_way)
    attack = _attack(context, run)
    mine = run is context.run
    feature = (lambda x: run.model.encode(x)) if mine else robust_features(run)
    clean, attacked = (
        collect(feature, picked(context, positions, bar=bar), attack=made_by, model=way)
        for made_by in (None, attack)
    )
    return clean, attacked


def _attack(context: PartContext, run: Run) -> PGD:
    return pgd(run.model.way(run.config.main_way), radius(run), seed=context.request.seed)


def _part_of(pair: Pair, name: str) -> Pair:
    clean, attacked = (Features(f.values[name], f.labels, f.predicted, f.positions) for f in pair)
    return clean, attacked


def _all_classes(pair: Pair, attacked: Sequence[int], names: Sequence[str], seed: int) -> dict[str, Any]:
    clean, adversarial = pair
    of_class = {names[label]: adversarial.values[adversarial.labels == label] for label in attacked}
    found = embedded(
        {"clean": clean.values, **{f"adversarial {k}": v for k, v in of_class.items()}}, seed=seed
    )
    return {
        "perplexity": found["perplexity"],
        "clean": found["clean"],
        "labels": clean.labels.tolist(),
        "adversarial": {name: found[f"adversarial {name}"] for name in of_class},
    }


def _predictions(pair: Pair, seed: int) -> dict[str, Any]:
    clean, adversarial = pair
    found = embedded({"clean": clean.values, "adversarial": adversarial.values}, seed=seed)
    return {**found, "predicted": adversarial.predicted.tolist()}  # type: ignore[union-attr]


def _figures(context: PartContext, numbers: Mapping[str, Any]) -> list[Any]:
    name, names = context.path.name, context.split.classes
    return [
        point_groups(panels, context.figure(f"{PART.name}-{figure}"), title=f"{name}: {title}")
        for figure, title, panels in (
            ("domain-specific", "domain-specific features", _domain_specific(numbers)),
            ("one-class", f"features of class {numbers['class']}", _one_class(numbers)),
            ("classes", "features of all classes", _classes(numbers, names)),
            (
                "predictions",
                f"class {numbers['class']}, by what attacked images are taken for",
                _by_prediction(numbers, names),
            ),
        )
    ]


def _domain_specific(numbers: Mapping[str, Any]) -> list[list[Panel]]:
    found = numbers["domain_specific"]
    groups = [
        PointGroup("clean", found["clean"], SERIES[0], "^"),
        PointGroup("attacked", found["adversarial"], SERIES[1]),
    ]
    return [[Panel(_heading(found, f"{numbers['images']} images and their attacked versions"), groups)]]


def _one_class(numbers: Mapping[str, Any]) -> list[list[Panel]]:
    found = numbers["one_class"]
    groups = [
        PointGroup("robust, clean", found["robust clean"], SERIES[0], "^"),
        PointGroup("robust, attacked", found["robust adversarial"], SERIES[5]),
        PointGroup("non-robust, clean", found["non-robust clean"], SERIES[1], "^"),
        PointGroup("non-robust, attacked", found["non-robust adversarial"], SERIES[4]),
    ]
    return [[Panel(_heading(found, f"{numbers['class_images']} images and their attacked versions"), groups)]]


def _classes(numbers: Mapping[str, Any], names: Sequence[str]) -> list[list[Panel]]:
    colours = class_colours(len(names))
    rows = []
    for shown in next(iter(numbers["classes"].values()))["adversarial"]:
        row = []
        for label, found in numbers["classes"].items():
            groups = [
                PointGroup(
                    name,
                    [p for p, own in zip(found["clean"], found["labels"], strict=True) if own == place],
                    colours[place],
                    "^",
                )
                for place, name in enumerate(names)
            ]
            groups.append(PointGroup("attacked", found["adversarial"][shown], COLOURS["ink"]))
            row.append(Panel(_heading(found, f"{label}, class {shown} attacked"), groups))
        rows.append(row)
    return rows


def _by_prediction(numbers: Mapping[str, Any], names: Sequence[str]) -> list[list[Panel]]:
    colours = class_colours(len(names))
    row = []
    for label, found in numbers["predictions"].items():
        groups = [PointGroup("clean", found["clean"], _PLAIN, "^")]
        for place in sorted(set(found["predicted"])):
            points = [
                p for p, taken in zip(found["adversarial"], found["predicted"], strict=True) if taken == place
            ]
            groups.append(PointGroup(f"taken for {names[place]}", points, colours[place]))
        row.append(Panel(_heading(found, label), groups))
    return [row]


def _heading(found: Mapping[str, Any], text: str) -> str:
    return f"{text} (perplexity {found['perplexity']:.3g})"


PART = Part(
    "tsne",
    "t-SNE of domain-specific, robust and non-robust features (figures 3, 5, 7 and 8)",
    _make,
    unfit=no_discriminator,
    takes=("against",),
)
