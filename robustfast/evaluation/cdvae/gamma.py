"""Figure 4: what the weight of the class loss does, over runs that differ in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from robustfast.attacks import Attack
from robustfast.errors import UserError
from robustfast.evaluation.cdvae import grey_box
from robustfast.evaluation.cdvae.classifiers import no_generator, same_weights, split_network
from robustfast.evaluation.cdvae.detection import detected
from robustfast.evaluation.cdvae.detection_scores import beside
from robustfast.evaluation.cdvae.reconstruction import unexplained
from robustfast.evaluation.detectors.parts import part_model
from robustfast.evaluation.parts import Part, PartContext, PartResult, Request, labelled
from robustfast.evaluation.pieces import Pieces, pieces
from robustfast.evaluation.tables import percent
from robustfast.training.run_folder import Run, RunFolder
from robustfast.visualization.gamma_curves import gamma_curves

__all__ = ["DETECTOR", "PART"]

DETECTOR = "md"
"""By which detection is measured."""
ATTACK = "pgd-linf"
"""Of table 6: what the defence is measured against."""

_ALONE = "--against names no other run of cdvae: train some with other --objective.gamma, and name them there"

_CURVES = {
    "classification": "classification: accuracy of D on R(x)",
    "reconstruction": "reconstruction: 1 - |x - G(x)| / |x|",
    "detection": "detection on R(x): mean AUROC, Mahalanobis",
    "defence": "defence: accuracy on G(x'), grey box",
}


@dataclass(frozen=True)
class _Member:
    """One run of the sweep: its label, and what the part works with of it."""

    label: str
    context: PartContext

    @property
    def gamma(self) -> float:
        return self.context.run.config.objective.gamma


def _make(context: PartContext) -> PartResult:
    """Kept batch by batch over all runs: an interruption loses one.

    Numbers: for each run, by rising gamma: "gamma", "run", "classification", "reconstruction", "detection" and
    "defence", which is that of D_G where every run has one, else that of D-hat on G(x'); "defence_by" says of which,
    "defences" has both. Null where there is none.
    """
    members = _members(context)
    source = context.source() if context.request.source is not None else None
    with pieces(context, PART.name) as kept:
        found = [_of(member, beside(kept, member.context), source) for member in members]
    heads = {name: [one["defences"].get(name) for one in found] for name in ("d_g", "d_hat")}
    by = "d_g" if all(value is not None for value in heads["d_g"]) else "d_hat"
    numbers: dict[str, Any] = {
        "gamma": [member.gamma for member in members],
        "run": [member.label for member in members],
        **{name: [one[name] for one in found] for name in ("classification", "reconstruction", "detection")},
        "defence": heads[by],
        "defence_by": by,
        "defences": heads,
        "detector": DETECTOR,
        "attack": ATTACK,
        "kept": [one["kept"] for one in found],
    }
    title = f"{context.run.config.dataset}, {context.images} test images"
    curves = {label: numbers[name] for name, label in _CURVES.items()}
    figure = gamma_curves(numbers["gamma"], curves, context.figure(PART.name), title=title)
    return PartResult(numbers, [_table(numbers, title)], [figure])


def _members(context: PartContext) -> list[_Member]:
    """This run and those of cdvae in --against, by rising gamma, each with the runs there that look at its parts.

    Raises:
        UserError: none to compare with, one of another data set, or one gamma twice.
    """
    others = _others(context)
    runs = {context.path: (context.path.name, context.run)}
    runs |= {path: named for path, named in others.items() if named[1].config.method == "cdvae"}
    if len(runs) < 2:
        raise UserError(_ALONE)
    members: dict[float, _Member] = {}
    for path, (label, run) in runs.items():
        if run.config.dataset != context.run.config.dataset:
            raise UserError(
                f"--against {path}: trained on {run.config.dataset}, {context.path} on {context.run.config.dataset}; "
                f"name runs of one data set"
            )
        of_its_parts = tuple(
            str(other) for other, (_, judge) in others.items() if _same_generator(judge, run)
        )
        own = replace(context, run=run, request=replace(context.request, against=of_its_parts))
        member = _Member(label, own)
        if member.gamma in members:
            raise UserError(
                f"--against {path}: gamma {member.gamma:g}, and so has {members[member.gamma].label}; name one run for "
                f"each gamma"
            )
        members[member.gamma] = member
    return [members[gamma] for gamma in sorted(members)]


def _others(context: PartContext) -> dict[Path, tuple[str, Run]]:
    """The runs of --against and their labels, by path."""
    names = [labelled(text) for text in context.request.against]
    labels = [label for label, _ in names]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--against names two runs {label}: give each a label of its own, as LABEL=PATH")
    loaded = context.others()
    return {path: (label, loaded[label]) for label, path in names}


def _same_generator(judge: Run, run: Run) -> bool:
    """Whether a run is one of a classifier on the parts that another run's G makes."""
    if judge.config.method != "cdvae_classifier" or no_generator(judge) is not None:
        return False
    one, other = split_network(judge).generator, split_network(run).generator
    return one is not None and same_weights(one, other)


def _of(member: _Member, kept: Pieces, source: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
    context, label = member.context, member.label
    network = split_network(context.run)

    @torch.no_grad()
    def parts(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        split = network.split(x)
        right = network.classifier("r")(split.r).argmax(1) == y
        return {"right": right, "unexplained": unexplained(split.x, split.g)}

    found = kept.of(f"{label}, parts", parts)
    defences = {} if source is None else _defences(member, kept, source)
    detection = detected(kept, {"r": part_model(network, "r")}, names=(DETECTOR,))
    return {
        "classification": found["right"].double().mean().item(),
        "reconstruction": 1 - found["unexplained"].double().mean().item(),
        "detection": detection["mean"][DETECTOR]["r"]["auroc"],
        "kept": {attack: own["r"]["kept"] for attack, own in detection["samples"].items()},
        "defences": defences,
    }


def _defences(member: _Member, kept: Pieces, source: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Accuracy under the attack on `source`, by what judges G(x')."""
    context = member.context
    judges = {name: judge for name, judge in grey_box.judges(context, source).items() if name != "undefended"}
    steps = context.steps(grey_box.STEPS)
    attack: Attack = grey_box.attacks(source, context.run, steps=steps, seed=context.request.seed)[ATTACK]

    def judged(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = attack(x, y, positions)
        with torch.no_grad():
            return {name: judge(images).argmax(1) == y for name, judge in judges.items()}

    found = kept.of(
        f"{member.label}, defence",
        judged,
        models=[source, *judges.values()],
        steps=steps,
        attack=repr(attack),
    )
    return {name: right.double().mean().item() for name, right in found.items()}


def _table(numbers: Mapping[str, Any], title: str) -> Table:
    head = {"d_g": "D_G(G(x'))", "d_hat": "D-hat(G(x'))"}[numbers["defence_by"]]
    table = Table(title=f"{title}: over gamma (percent)", box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold")
    for heading in ("gamma", "D(R(x))", "reconstruction", "detection", head):
        table.add_column(heading, justify="right")
    for number, label in enumerate(numbers["run"]):
        table.add_row(
            label, f"{numbers['gamma'][number]:g}", *(percent(numbers[name][number]) for name in _CURVES)
        )
    return table


def _unfit(run: Run) -> str | None:
    if run.config.method != "cdvae":
        return (
            f"{run.path.name} ({run.config.method}) has no weight gamma of D's loss beside G's, as cdvae has"
        )
    return no_generator(run)


class _Sweep(Part):
    """The part, which is left out where the runs beside this one are classifiers of its parts alone."""

    def obstacle(self, run: Run, request: Request) -> str | None:
        reason = super().obstacle(run, request)
        if reason is not None:
            return reason
        beside = (path for _, path in map(labelled, request.against) if path.resolve() != run.path.resolve())
        return None if any(RunFolder.open(path).config.method == "cdvae" for path in beside) else _ALONE


PART = _Sweep(
    "gamma",
    "classification, reconstruction, detection and defence over gamma (figure 4)",
    _make,
    needs=("against",),
    wants={"against": "runs of cdvae with other gamma"},
    unfit=_unfit,
    takes=("source", "steps"),
)
