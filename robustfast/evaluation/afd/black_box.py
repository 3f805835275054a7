"""Accuracy on images that were made on another model, naturally trained in the paper: AFD's table 1, last columns."""

from __future__ import annotations

from pathlib import Path

from robustfast.evaluation.afd import grids
from robustfast.evaluation.afd.attacked import (
    MadeOn,
    add_accuracies,
    check_same_data,
    configurations,
    plain_table,
    swept,
)
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.sweep_settings import SweepAttack
from robustfast.training.run_folder import RunFolder

__all__ = ["ATTACKS", "BLACK_BOX"]

ATTACKS = ("pgd", "cw")
"""Those of table 1 whose images are made on the other model."""


def _make(context: PartContext) -> PartResult:
    """Numbers: "pgd", "cw", "clean", and of each attack its settings."""
    spec = context.request.source or ""
    if Path(spec).is_dir():
        check_same_data(context, f"--source {spec}", RunFolder.open(Path(spec)).config.dataset)
    source = context.source()
    known = grids.nominal(context.run.config.dataset)
    chosen = {name: known[name] for name in ATTACKS}
    attacks = [(MadeOn.on(source, named), eps) for named, eps in chosen.values()]
    document = swept(
        context,
        "black-box",
        [SweepAttack(made, (0.0, eps), described=made.described(spec)) for made, eps in attacks],
    )
    accuracy = {name: document["attacks"][named.name]["accuracy"][-1] for name, (named, _) in chosen.items()}
    numbers = {**accuracy, "clean": document["natural"], "attacks": configurations(document)}
    table = plain_table(context, f"images made on {spec}, accuracy in percent (AFD, table 1)")
    add_accuracies(
        table,
        {"clean": document["natural"], **accuracy},
        {name: (named.norm, eps) for name, (named, eps) in chosen.items()},
    )
    return PartResult(numbers, [table])


BLACK_BOX = Part(
    "black-box",
    "accuracy on images of PGD and C&W that were made on --source (AFD, table 1)",
    _make,
    needs=("source",),
)
