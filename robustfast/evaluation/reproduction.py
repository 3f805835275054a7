"""Which runs a table of the paper needs, at which scale, and how far each of them is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robustfast.errors import UserError
from robustfast.evaluation import document as documents
from robustfast.evaluation.aat import FILE
from robustfast.evaluation.attacks import ATTACKS, EvaluationAttack
from robustfast.evaluation.comparison import combine_one_way
from robustfast.evaluation.paper import TABLES
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig, differences
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import RunFolder

__all__ = [
    "SCALES",
    "Plan",
    "PlannedRun",
    "Scale",
    "evaluated",
    "finished_epochs",
    "plan",
    "rows",
]

FAMILIES = {
    "aat-table1": "cifar10-wrn34",
    "aat-table2": "cifar10-prn18",
    "aat-table3": "mnist",
    # The paper does not say which backbone table 4b used. The wide one fits: there the robust way is right and the
    # non-robust way wrong on 59.5 % (AAT) and 66.4 % (AAT++) of the attacked images, and 64.8 and 68.8 % are detected.
    "aat-table4b": "cifar10-wrn34",
    "aat-table6": "cifar10-wrn34",
    "aat-table7": "cifar10-prn18",
    "aat-table8": "mnist",
    "aat-ablation": "cifar10-wrn34",
}
"""The presets each table is made from."""

FAMILY_ATTACKS = {
    "cifar10-wrn34": ("cifar-linf", "cifar-l2-sign"),
    "cifar10-prn18": ("cifar-linf", "cifar-l2-sign"),
    "mnist": ("mnist-linf",),
}
"""Every run is evaluated under all attacks of its tables at once, so that tables share runs and evaluations."""


SAME_RUN = {"terms:st,as": "aat", "terms:st,as,ar,an": "aatpp"}
"""Ablation rows that are the methods of the other tables (AAT eq. 8 and 11)."""


@dataclass(frozen=True)
class Scale:
    """How much of the paper's work is done.

    Attributes:
        name: as the command line takes it.
        comparable: whether the numbers can stand beside the paper's.
        epochs: share of the preset's epochs, and of the steps that make pseudo-inputs; milestones move with them.
        test_images: how many test images are attacked; None is all.
        smoke: where a run is only to show that it runs: by backbone the (training, test) images kept, for one epoch and
            `SMOKE_STEPS` attack steps everywhere; None otherwise.
    """

    name: str
    comparable: bool
    epochs: float
    test_images: int | None
    smoke: Mapping[str, tuple[int, int]] | None = None


SMOKE_STEPS = 2

SCALES = {
    # Sized so that each table takes minutes on two cores: a forward pass is 0.05, 1.1 and 13 GFLOP in these three.
    "smoke": Scale(
        "smoke",
        False,
        0.0,
        None,
        {"small_cnn": (1024, 256), "preact_resnet18": (128, 64), "wide_resnet34_10": (16, 4)},
    ),
    "small": Scale("small", False, 0.1, 1000),
    "paper": Scale("paper", True, 1.0, None),
}
"""Scales by name."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table.

    Attributes:
        method: its row, as in `robustfast.evaluation.paper.METHODS`.
        config: what to train; `out` is its folder.
    """

    method: str
    config: TrainConfig

    @property
    def path(self) -> Path:
        return self.config.out  # type: ignore[return-value]

    @property
    def ways(self) -> str:
        """The ways this run trains."""
        return lookup("objective", OBJECTIVES, self.config.method).main_ways


@dataclass(frozen=True)
class Plan:
    """Everything a table needs.

    Attributes:
        table: its name.
        scale: how much is done.
        runs: in the order in which they must be made: pseudo-inputs come from the models of two others.
        attacks: what every run is evaluated under.
    """

    table: str
    scale: Scale
    runs: tuple[PlannedRun, ...]
    attacks: tuple[EvaluationAttack, ...]

    @property
    def note(self) -> str:
        """What a reader of the numbers must know about the scale."""
        config = self.runs[0].config
        if self.scale.smoke:
            train, test = self.scale.smoke[config.model]
            return (
                f"scale {self.scale.name}: {train} training images, 1 epoch, {test} test images, {SMOKE_STEPS} attack "
                f"steps. It shows that everything runs; the numbers say nothing about the method."
            )
        if not self.scale.comparable:
            return (
                f"scale {self.scale.name}: {config.epochs} epochs, {self.scale.test_images} test images: shorter than "
                f"the paper's, so the numbers are not comparable."
            )
        return f"scale {self.scale.name}: the paper's configuration, all test images."


def plan(table: str, scale: str, folder: Path, *, data_dir: Path, **fields: Any) -> Plan:
    """Lay out the runs of a table.

    Args:
        table: one of `robustfast.evaluation.paper.TABLES`.
        scale: one of `SCALES`.
        folder: where the runs of this scale lie, each in a folder of its own.
        data_dir: the data sets, or what the smoke scale keeps of them.
        fields: fields of `TrainConfig` for all runs, such as device, precision or seed.

    Raises:
        UserError: an unknown table or scale.
    """
    family = lookup("table", FAMILIES, table)
    size = lookup("scale", SCALES, scale)
    wanted = [method for method in TABLES[table].rows if method != "st+at"]
    if "pi" in wanted:
        wanted = list(dict.fromkeys(["st", "at", *wanted]))
    runs = []
    for method in wanted:
        made_by = SAME_RUN.get(method, method)
        path = folder / f"{family}-{made_by.translate(str.maketrans(':,', '--'))}"
        config = replace(_config(family, made_by, folder), data_dir=data_dir, out=path, **fields)
        runs.append(PlannedRun(method, _at_scale(config, size)))
    attacks = tuple(ATTACKS[name] for name in FAMILY_ATTACKS[family])
    if size.smoke:
        attacks = tuple(replace(a, strength=replace(a.strength, steps=SMOKE_STEPS)) for a in attacks)
    return Plan(table, size, tuple(runs), attacks)


def rows(table: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The documents of a table's rows, from those of its runs: ST+AT is put together from two of them."""
    known = dict(found)
    if {"st", "at"} <= set(found):
        known["st+at"] = combine_one_way(found["st"], found["at"])
    return {method: known[method] for method in TABLES[table].rows if method in known}


def finished_epochs(run: PlannedRun) -> int | None:
    """Epochs behind a run, as its metrics file has them; None where there is no run.

    Raises:
        UserError: the folder holds a run of another configuration, or something else.
    """
    path = run.path
    if not path.exists():
        return None
    if not (path / "config.json").exists():
        # Killed while it was made: an empty checkpoints folder, and perhaps half a configuration.
        left = sorted(entry.name for entry in path.rglob("*"))
        if set(left) <= {"checkpoints", "config.json.partial"}:
            shutil.rmtree(path)
            return None
        raise UserError(f"{path} is in the way: no run, but not empty; move it, or give another --out")
    stored = RunFolder.open(path).config
    if changed := differences(run.config, stored):
        raise UserError(
            f"{path} was trained otherwise: {', '.join(changed)}; give another --out to train it anew"
        )
    metrics = path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def evaluated(run: PlannedRun, made: Plan) -> dict[str, Any] | None:
    """The evaluation of a finished run, if it is the one the plan asks for; None where it must be made (again)."""
    path = run.path / FILE
    if not path.exists():
        return None
    try:
        document = documents.read(path)
        records = documents.records(document)
        wanted = {attack.name: attack.as_json() for attack in made.attacks}
        images = min(made.scale.test_images or document["images_in_split"], document["images_in_split"])
        fits = (
            document["checkpoint"] == {"name": "last", "epoch": run.config.epochs}
            and document["images"] == images
            and {name: record["attack"] for name, record in records.items()} == wanted
        )
    except (UserError, KeyError):
        return None
    return document if fits else None


def _config(family: str, method: str, folder: Path) -> TrainConfig:
    """The paper-scale configuration of one row."""
    if method.startswith("terms:"):
        terms = tuple(method.removeprefix("terms:").split(","))
        preset = PRESETS[f"{family}-aatpp"]
        return replace(preset, objective=replace(preset.objective, terms=terms))
    if method == "pi":
        preset = PRESETS[f"{family}-st"]
        objective = OBJECTIVES["pi"].Config(
            pseudo_inputs=folder / f"{family}-pseudo-inputs.safetensors",
            robust_weights=folder / f"{family}-at" / "checkpoints" / "last.pt",
            standard_weights=folder / f"{family}-st" / "checkpoints" / "last.pt",
        )
        return replace(preset, preset=f"{family}-pi", method="pi", objective=objective)
    return PRESETS[f"{family}-{method}"]


def _at_scale(config: TrainConfig, scale: Scale) -> TrainConfig:
    if scale.smoke:
        train, _ = scale.smoke[config.model]
        changes: dict[str, Any] = {
            "epochs": 1,
            "milestones": (),
            "batch_size": min(config.batch_size, train // 2),
            "attack": replace(config.attack, steps=SMOKE_STEPS),
            "validate_every": 0,
        }
        if config.method == "pi":
            changes["objective"] = replace(config.objective, steps=SMOKE_STEPS)
        return replace(config, **changes)
    if scale.epochs == 1:
        return config
    epochs = max(1, round(config.epochs * scale.epochs))
    milestones = {round(milestone * scale.epochs) for milestone in config.milestones}
    objective = config.objective
    if config.method == "pi":
        objective = replace(objective, steps=max(1, round(objective.steps * scale.epochs)))
    return replace(
        config,
        epochs=epochs,
        milestones=tuple(sorted(m for m in milestones if 0 < m < epochs)),
        objective=objective,
    )
