"""The sweeps of several runs side by side: AFD's table 2 as a whole, and its figures 2, A1 to A3 and A5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from robustfast.errors import UserError
from robustfast.evaluation.afd.attacked import attacked_way, check_same_data, plain_table
from robustfast.evaluation.afd.sweeps import AREAS, TITLES, curve, panels
from robustfast.evaluation.afd.taps import run_label
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.parts import Part, PartContext, PartResult, Request, labelled, part_numbers
from robustfast.training.run_folder import Run, load_run
from robustfast.visualization.accuracy_panels import accuracy_panels

__all__ = ["CURVES"]

PROTOCOL = "afd"


class _Curves(Part):
    """Cannot be made before the sweeps of the other runs are."""

    def obstacle(self, run: Run, request: Request) -> str | None:
        reason = super().obstacle(run, request)
        for _, path in [] if reason else map(labelled, request.against):
            other = load_run(path, which=request.checkpoint, device=request.device)
            if _sweeps(other, request) is None:
                of = f"{request.images} images" if request.images else "all images"
                return (
                    f"needs the part sweeps of {path}, of {of} by its {request.checkpoint}.pt: make it first"
                )
        return reason


def _make(context: PartContext) -> PartResult:
    """Numbers: "attacks" by name, each with its "norm" and by label of the run "eps", "accuracy" (on both grids) and
    the areas "printed" and "corrected"."""
    own = run_label(context.run)
    others = context.others()
    if own in others:
        raise UserError(
            f"--against: {own} is this run's own name; give another one as LABEL={others[own].path}"
        )
    runs = {}
    # This run last, as in the paper.
    for label, run in {**others, own: context.run}.items():
        check_same_data(context, f"--against {label}", run.config.dataset)
        found = _sweeps(run, context.request)
        if found is None:
            raise UserError(
                f"part curves draws the part sweeps, which {run.path} has not: name both with --parts"
            )
        runs[label] = found["attacks"]
    title = f"{context.run.config.dataset}, {context.images} test images"
    figure = accuracy_panels(panels(runs), context.figure("curves"), title=title)
    attacks = {name: {"norm": runs[own][name]["norm"], "runs": _beside(runs, name)} for name in TITLES}
    return PartResult({"attacks": attacks}, [_areas(context, attacks, list(runs))], [figure])


def _sweeps(run: Run, request: Request) -> dict[str, Any] | None:
    """What the part sweeps found of these weights on as many images; None where it was not made."""
    weights = weights_digest(attacked_way(run))
    for whole in (True, False):
        found = part_numbers(run.path, PROTOCOL, "sweeps", whole=whole)
        if found is None or found["weights"] != weights:
            continue
        if found["images"] == (request.images or found["images_in_split"]):
            return found
    return None


def _beside(runs: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    found = {}
    for label, attacks in runs.items():
        eps, accuracy = curve(attacks[name])
        areas = {
            kind: None if attacks[name][kind] is None else attacks[name][kind]["auc"]
            for kind in ("printed", "corrected")
        }
        found[label] = {"eps": eps, "accuracy": accuracy, **areas}
    return found


def _areas(context: PartContext, attacks: Mapping[str, Any], labels: list[str]) -> Table:
    table = plain_table(context, AREAS)
    table.add_column("attack")
    for label in labels:
        table.add_column(label, justify="right")
    for name, attack in attacks.items():
        for kind in ("printed", "corrected"):
            found = [attack["runs"][label][kind] for label in labels]
            if None not in found:
                heading = TITLES[name] if kind == "printed" else f"{TITLES[name]}, corrected grid"
                table.add_row(heading, *(f"{area:.4f}" for area in found))
    return table


CURVES = _Curves(
    "curves",
    "the sweeps of this run and of --against side by side (AFD, table 2, figures 2, A1 to A3, A5)",
    _make,
    needs=("against",),
)
