"""The sweeps of several runs side by side: AFD's table 2 as a whole, and its figures 2, A1 to A3 and A5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from robustfast.errors import UserError
from robustfast.evaluation.afd.attacked import attacked_way, check_same_data
from robustfast.evaluation.afd.sweeps import TITLES, curve, panels
from robustfast.evaluation.afd.taps import run_label
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.parts import Part, PartContext, PartResult, part_numbers
from robustfast.training.run_folder import Run
from robustfast.visualization.accuracy_panels import accuracy_panels

__all__ = ["CURVES"]


def _make(context: PartContext) -> PartResult:
    """Numbers: "attacks" by name, each with its "norm" and by label of the run "eps", "accuracy" (on both grids) and
    the areas "printed" and "corrected"; "without": label to why a run of --against is not among them."""
    runs, without = {}, {}
    own = run_label(context.run)
    for label, run in context.others().items():
        check_same_data(context, f"--against {label}", run.config.dataset)
        found = part_numbers(run.path, context.protocol, "sweeps", whole=context.whole)
        if label == own:
            raise UserError(
                f"--against: {label} is this run's own name; give another one as LABEL={run.path}"
            )
        if reason := _unfit(found, run, context):
            without[label] = reason
            context.console.print(f"{label}: left out, {reason}", markup=False, soft_wrap=True)
        else:
            runs[label] = found["attacks"]  # type: ignore[index]  # None is unfit
    # This run last, as in the paper.
    if reason := _unfit(context.earlier.get("sweeps"), context.run, context):
        raise UserError(f"part curves: {reason}; name sweeps with --parts too")
    runs[own] = context.earlier["sweeps"]["attacks"]
    title = f"{context.run.config.dataset}, {context.images} test images"
    figure = accuracy_panels(panels(runs), context.figure("curves"), title=title)
    attacks = {name: {"norm": runs[own][name]["norm"], "runs": _beside(runs, name)} for name in TITLES}
    return PartResult(
        {"attacks": attacks, "without": without}, [_areas(title, attacks, list(runs))], [figure]
    )


def _unfit(found: Mapping[str, Any] | None, run: Run, context: PartContext) -> str | None:
    """Why a run's sweeps cannot stand in the figure; None where they can."""
    images = "" if context.whole else f" of {context.images} images"
    if found is None:
        return f"the part sweeps of {run.path}{images} is not there"
    if found["weights"] != weights_digest(attacked_way(run)):
        return f"the part sweeps of {run.path} is of other weights than its checkpoint"
    if found["images"] != context.images:
        return f"the part sweeps of {run.path} is of {found['images']} images, expected {context.images}"
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


def _areas(title: str, attacks: Mapping[str, Any], labels: list[str]) -> Table:
    table = Table(
        title=f"{title}: area under the accuracy in [0, 1] over eps / (largest eps), on the printed grid and in "
        f"brackets on the corrected one (AFD, table 2)",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("")
    for name in attacks:
        table.add_column(TITLES[name], justify="right")
    for label in labels:
        cells = []
        for attack in attacks.values():
            found = attack["runs"][label]
            corrected = "" if found["corrected"] is None else f" ({found['corrected']:.3f})"
            cells.append(f"{found['printed']:.3f}{corrected}")
        table.add_row(label, *cells)
    return table


CURVES = Part(
    "curves",
    "the sweeps of this run and of --against side by side (AFD, table 2, figures 2, A1 to A3, A5)",
    _make,
    needs=("against",),
)
