"""Accuracy against eps under nine attacks, and the areas under the curves: AFD's table 2, figures 2 and A1 to A3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from robustfast.evaluation.afd import grids
from robustfast.evaluation.afd.attacked import configurations, plain_table, swept
from robustfast.evaluation.afd.taps import run_label
from robustfast.evaluation.grids import area
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.sweep_settings import SweepAttack
from robustfast.evaluation.sweep_tables import eps_labels
from robustfast.visualization.accuracy_panels import Panel, accuracy_panels

__all__ = ["AREAS", "SWEEPS", "TITLES", "curve", "panels"]

TITLES = {
    "pgd-linf": "PGD-linf",
    "pgd-l2": "PGD-l2",
    "pgd-l1": "PGD-l1",
    "fgsm": "FGSM",
    "mim": "MIM",
    "ddn": "DDN",
    "deepfool": "DeepFool",
    "cw": "C&W",
    "aa": "AutoAttack",
}
"""What the paper calls its attacks, in the order of table 2."""

AREAS = "area under the accuracy in [0, 1] over eps / (largest eps) (AFD, table 2)"
"""What the tables of areas show."""


def _make(context: PartContext) -> PartResult:
    """Numbers: "attacks" by name, each with its "norm", on the grids "printed" and "corrected" (None where the printed
    one fits) "eps", "accuracy" and "auc", and all "settings"; the model's "weights", "images", "images_in_split" and
    the "warnings" of masked gradients."""
    known = grids.sweeps(context.run.config.dataset)
    document = swept(
        context, "sweeps", [SweepAttack(grid.named, grid.eps) for grid in known.values()], probes=True
    )
    settings = configurations(document)
    attacks = {}
    for name, grid in known.items():
        found = document["attacks"][name]
        by_eps = dict(zip(found["eps"], found["accuracy"], strict=True))
        attacks[name] = {
            "norm": grid.named.norm,
            "printed": _on(grid.printed, by_eps),
            "corrected": None if grid.corrected is None else _on(grid.corrected, by_eps),
            "settings": settings[name],
        }
    label = run_label(context.run)
    title = f"{label}: {context.run.config.dataset}, {context.images} test images"
    figure = accuracy_panels(panels({label: attacks}), context.figure("sweeps"), title=title)
    about = ("weights", "images", "images_in_split", "warnings")
    numbers = {"attacks": attacks, **{name: document[name] for name in about}}
    return PartResult(numbers, [_areas(context, attacks)], [figure])


def curve(attack: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Radii of both grids and the accuracies there, of one attack of the part's numbers."""
    by_eps: dict[float, float] = {}
    for kind in ("printed", "corrected"):
        if attack[kind] is not None:
            by_eps |= dict(zip(attack[kind]["eps"], attack[kind]["accuracy"], strict=True))
    eps = sorted(by_eps)
    return eps, [by_eps[radius] for radius in eps]


def panels(runs: Mapping[str, Mapping[str, Any]]) -> list[Panel]:
    """A panel for each attack with a curve for each run.

    Args:
        runs: label to the attacks of its sweeps.
    """
    return [
        Panel(
            title,
            next(iter(runs.values()))[name]["norm"],
            {label: curve(attacks[name]) for label, attacks in runs.items()},
        )
        for name, title in TITLES.items()
    ]


def _on(eps: Sequence[float], by_eps: Mapping[float, float]) -> dict[str, Any]:
    accuracy = [by_eps[radius] for radius in eps]
    return {"eps": list(eps), "accuracy": accuracy, "auc": area(eps, accuracy)}


def _areas(context: PartContext, attacks: Mapping[str, Any]) -> Table:
    table = plain_table(context, AREAS)
    table.add_column("attack")
    for kind in ("printed", "corrected"):
        table.add_column(f"{kind} grid")
        table.add_column("AUC", justify="right")
    for name, attack in attacks.items():
        cells = []
        for kind in ("printed", "corrected"):
            found = attack[kind]
            cells += (
                ["-", "-"] if found is None else [", ".join(eps_labels(found["eps"])), f"{found['auc']:.4f}"]
            )
        table.add_row(TITLES[name], *cells)
    return table


SWEEPS = Part(
    "sweeps",
    "accuracy against eps under nine attacks, and the areas (AFD, table 2, figures 2, A1 to A3)",
    _make,
)
