"""Tables and figures out of a protocol's parts: rows of runs, columns that name numbers of parts, figures of parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation.comparison import PRINTED, Cell, Column, Comparison
from robustfast.evaluation.parts import Part, Request, document_path, evaluate_parts
from robustfast.evaluation.protocols import PROTOCOLS
from robustfast.evaluation.reduced_data import TREES
from robustfast.evaluation.reproducible import (
    SMOKE_STEPS,
    Evaluation,
    Plan,
    PlannedRun,
    Reproducible,
    Result,
    Scale,
    at_scale,
)
from robustfast.evaluation.run_record import RunRecord
from robustfast.training.config import TrainConfig
from robustfast.training.presets import PRESETS

__all__ = ["Lead", "PartTable", "PartsEvaluation", "Row", "Wanted"]

SMOKE_MODELS = {
    "resnet18": "narrow_resnet",
    "preact_resnet18": "wide_resnet10_1",
    "wide_resnet34_10": "wide_resnet10_1",
    "wide_resnet28_10": "wide_resnet10_1",
    "wide_resnet28_10_dropout": "wide_resnet10_1_dropout",
    "resnet50": "wide_resnet10_1",
}
"""Backbones that the smoke scale puts in the place of larger ones: a protocol of nine attacks takes hours of those."""

SMOKE_IMAGE_SIZE = 64
"""Side of image files there, where the preset's is larger or theirs."""


@dataclass(frozen=True)
class Row:
    """One row of one table: a method, or one of several readings of a method's run.

    Attributes:
        label: as the paper prints it.
        preset: trains it; None where the row is another's run (`of`), or the method is not here and the row the
            paper's alone.
        printed: column key to the number as printed (in its column's unit), or to (mean, spread) of several runs.
        settings: fields of the preset's objective that are otherwise.
        fields: fields of the preset that are.
        variant: what tells its run from others of the preset; without it the changed settings and fields do.
        start: other rows that it starts from, as ``--start-from`` takes runs: ROW, or PART=ROW. They are trained first.
        of: the row whose run this one reads too.
        reads: where its numbers lie among those of the parts, with ``{key}`` for a column's key, ``{0}``, ``{1}`` for
            steps of it; without it the key is the path.
        only_lent: it is trained for other rows, which start from it or take it; nothing is made of it.
    """

    label: str
    preset: str | None = None
    printed: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    start: tuple[str, ...] = ()
    of: str | None = None
    reads: str = ""
    only_lent: bool = False

    def config(self) -> TrainConfig | None:
        """At the paper's scale; None for a row that is not trained here."""
        if self.preset is None or self.preset not in PRESETS:
            return None
        preset = PRESETS[self.preset]
        return replace(preset, objective=replace(preset.objective, **self.settings), **self.fields)

    @property
    def run(self) -> str:
        """What its run is called, where it starts from no other."""
        changed = [self.variant] if self.variant else [*self.settings.values(), *self.fields.values()]
        return "-".join(map(str, [self.preset, *changed]))

    def path(self, column: Column) -> str:
        """Where its number of a column lies: PART.KEY.KEY."""
        return self.reads.format(*column.key.split("."), key=column.key) if self.reads else column.key


@dataclass(frozen=True)
class Lead:
    """The row whose parts draw a figure, or that alone has a table.

    Attributes:
        row: which.
        parts: what is made of it beside the table's own.
        figures: of its figures those whose file names contain one of these words; none are all of them.
    """

    row: str
    parts: tuple[str, ...]
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is made of one run.

    Attributes:
        parts: names, none are none.
        source, against: other rows that these take.
    """

    parts: tuple[str, ...] = ()
    source: str | None = None
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartsEvaluation(Evaluation):
    """A protocol of parts.

    Attributes:
        protocol: its name.
        wanted: row to what is made of it.
        labels: row to what it is called in figures.
        costs: part to F per test image at most: attacks leave an image alone that is fooled.
        steps: as of `Request`.
        inception_weights: as of `Request`, in parts that take them.
    """

    at_most = True

    protocol: str
    wanted: Mapping[str, Wanted]
    labels: Mapping[str, str]
    costs: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    inception_weights: Path | None = None

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return any(wanted.source or wanted.against for wanted in self.wanted.values())

    def finished(self, run: PlannedRun, plan: Plan) -> Mapping[str, Any] | None:
        parts = set(self.wanted[run.method].parts)
        if _epochs(run) < run.config.epochs:
            return None
        if not parts:
            return {}
        if self.inception_weights and any("inception_weights" in part.takes for part in self._made(parts)):
            # Whether it was this file, the part itself knows: it keeps what it has.
            return None
        for whole in (True, False):
            try:
                document = json.loads(document_path(run.path, self.protocol, whole=whole).read_text())
                total = document["images_in_split"]
                fits = (
                    document["checkpoint"]["name"] == _checkpoint(run)
                    and document["images"] == min(plan.images or total, total)
                    and all({"key", "numbers"} <= set(document["parts"][part]) for part in parts)
                )
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if fits:
                return document
        return None

    def make(self, run: PlannedRun, plan: Plan, console: Console) -> Mapping[str, Any]:
        wanted, config = self.wanted[run.method], run.config
        if not wanted.parts:
            return {}
        paths = {other.method: other.path for other in plan.runs}
        images = plan.images
        if images is not None:
            test = load(config.dataset, "test", config.data_dir, image_size=config.image_size)
            images = min(images, len(test))
        console.print(f"\n{self.labels[run.method]}: {run.path}, protocol {self.protocol}", style="bold")
        request = Request(
            parts=wanted.parts,
            images=images,
            checkpoint=_checkpoint(run),
            device=config.device,
            data_dir=config.data_dir,
            source=None if wanted.source is None else str(paths[wanted.source]),
            against=tuple(f"{self.labels[row]}={paths[row]}" for row in wanted.against),
            inception_weights=self.inception_weights,
            steps=self.steps,
            seed=config.seed,
        )
        return evaluate_parts(run.path, self.protocol, PROTOCOLS[self.protocol], request, console=console)

    def passes(self, run: PlannedRun, plan: Plan) -> float:
        return sum(self.costs.get(part, 0.0) for part in self.wanted[run.method].parts)

    def taking(self, inception_weights: Path | None) -> PartsEvaluation:
        return replace(self, inception_weights=inception_weights)

    def as_json(self) -> dict[str, Any]:
        return {"protocol": self.protocol}

    def _made(self, names: Iterable[str]) -> list[Part]:
        return [part for part in PROTOCOLS[self.protocol] if part.name in names]


@dataclass(frozen=True)
class PartTable(Reproducible):
    """A table, a figure, or both.

    Attributes:
        name: as the command line takes it.
        title: what it shows.
        protocol: whose parts.
        rows: the methods, in the paper's order.
        columns: keys are paths through a part's numbers, PART.KEY.KEY, or what `Row.reads` makes paths of; a number in
            a path counts along a list.
        parts: further parts of every row, behind a figure.
        source: the row on whose model black-box images are made; it has none of those parts itself.
        against: rows that stand beside each other one, where a part takes such.
        lead: see there.
        costs: as of `PartsEvaluation`.
        smoke_costs: those that are otherwise where the steps of attacks are bounded.
        caveat: what a reader must know of the printed numbers.
        smoke_settings: of objectives, at the smoke scale, where they have such fields.
        smoke_images: (training, test) images there, for parts that need more of them than others and fewer passes.
    """

    name: str
    title: str
    protocol: str
    rows: Mapping[str, Row]
    columns: tuple[Column, ...] = ()
    parts: tuple[str, ...] = ()
    source: str | None = None
    against: tuple[str, ...] = ()
    lead: Lead | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    smoke_costs: Mapping[str, float] = field(default_factory=dict)
    caveat: str = ""
    smoke_settings: Mapping[str, Any] = field(default_factory=dict)
    smoke_images: tuple[int, int] | None = None

    @property
    def data(self) -> str:  # type: ignore[override]
        first = next(config for row in self.rows.values() if (config := row.config()) is not None)
        own = [str(images) for images in self.smoke_images or ()]
        return "-".join([first.dataset, self.protocol, *own])

    def configs(self, folder: Path) -> dict[str, tuple[str, TrainConfig]]:
        found: dict[str, tuple[str, TrainConfig]] = {}
        for name, row in self.rows.items():
            if row.preset is not None:
                self._configure(name, folder, found)
        self._parts()
        return found

    def _configure(self, name: str, folder: Path, found: dict[str, tuple[str, TrainConfig]]) -> None:
        """Add a row to `found`, behind those that it starts from."""
        if name in found:
            return
        row = self.rows[name]
        config = row.config()
        if config is None:
            raise UserError(f"{self.name} needs the preset {row.preset}, which this version does not have")
        run, start = row.run, []
        for entry in row.start:
            part, equals, other = entry.rpartition("=")
            self._configure(other, folder, found)
            theirs = found[other][0]
            start.append(f"{part}{equals}{folder / theirs}")
            # The same preset from another run is another run.
            run += f"{'' if start[1:] else '-from'}-{theirs}"
        found[name] = (run, replace(config, start_from=tuple(start)) if start else config)

    def scaled(self, config: TrainConfig, scale: Scale) -> TrainConfig:
        if not scale.smoke:
            return at_scale(config, scale)
        known = {entry.name for entry in fields(config.objective)}
        settings = {name: value for name, value in self.smoke_settings.items() if name in known}
        config = replace(
            config,
            model=_smoke_model(config.model),
            image_size=min(config.image_size or SMOKE_IMAGE_SIZE, SMOKE_IMAGE_SIZE)
            if config.dataset in TREES
            else None,
            objective=replace(config.objective, **settings),
        )
        return at_scale(config, scale, kept=self.kept(scale, config)[0])

    def kept(self, scale: Scale, config: TrainConfig) -> tuple[int, int]:
        return self.smoke_images or super().kept(scale, config)

    def images(self, scale: Scale, config: TrainConfig) -> int | None:
        return self.kept(scale, config)[1] if scale.smoke else scale.test_images

    def note(self, scale: Scale) -> str:
        said = [self.caveat]
        if scale.smoke:
            models = dict.fromkeys(config.model for row in self.rows.values() if (config := row.config()))
            small = [
                f"{_smoke_model(model)} in place of {model}"
                for model in models
                if _smoke_model(model) != model
            ]
            said += [f"Backbones: {', '.join(small)}."] if small else []
        return " ".join(filter(None, said))

    def label(self, row: str) -> str:
        return self.rows[row].label

    def evaluation(self, scale: Scale) -> PartsEvaluation:
        return PartsEvaluation(
            self.protocol,
            {name: self._wanted(name) for name, row in self.rows.items() if row.preset is not None},
            {name: row.label for name, row in self.rows.items()},
            {**self.costs, **self.smoke_costs} if scale.smoke else self.costs,
            SMOKE_STEPS if scale.smoke else None,
        )

    def result(self, plan: Plan, found: Mapping[str, Mapping[str, Any]], folder: Path) -> Result:
        numbers = {
            name: {part: document["parts"][part]["numbers"] for part in self._wanted(name).parts}
            for name, document in found.items()
        }
        drawn = self._copied(plan, found, folder) if self.lead is not None else []
        values = {"numbers": numbers} if not self.columns or self.lead is not None else {}
        comparison = self._compared(numbers) if self.columns else None
        return Result(comparison, values, drawn)

    def beside(self, run: RunRecord) -> tuple[TrainConfig, Comparison] | None:
        for name, row in self.rows.items():
            preset = row.config()
            rows = [other for other in self._readings(name) if self.rows[other].printed]
            if preset is None or not rows or not self.columns:
                continue
            if any(getattr(preset, key) != getattr(run.config, key) for key in _IDENTITY):
                continue
            numbers = _reported(run, self.protocol)
            if numbers is None:
                return None
            compared = self._compared({name: numbers})
            rows = [row for row in rows if any(cell.ours is not None for cell in compared.rows[row])]
            if rows:
                return preset, compared.row(*rows)
        return None

    def _readings(self, name: str) -> list[str]:
        """The rows that read the run of a row: itself, and those that are `of` it."""
        return [other for other, row in self.rows.items() if name in (other, row.of) and not row.only_lent]

    def _read(self, rows: Iterable[str]) -> list[str]:
        """The parts that the columns of these rows take their numbers from."""
        paths = [self.rows[row].path(column) for row in rows for column in self.columns]
        return list(dict.fromkeys(path.partition(".")[0] for path in paths))

    def _parts(self) -> dict[str, Part]:
        """The protocol's parts by name; refuses a table that needs others."""
        known = {part.name: part for part in PROTOCOLS.get(self.protocol, ())}
        read = [name for name, row in self.rows.items() if not row.only_lent and (row.preset or row.of)]
        wanted = [*self._read(read), *self.parts, *(self.lead.parts if self.lead else ())]
        if missing := [name for name in dict.fromkeys(wanted) if name not in known]:
            raise UserError(
                f"{self.name} needs part {missing[0]} of protocol {self.protocol}, which this version does not have"
            )
        return known

    def _wanted(self, row: str) -> Wanted:
        if not self._readings(row):
            return Wanted()
        known = self._parts()
        source = None if row == self.source else self.source
        against = tuple(other for other in self.against if other != row)
        names = [*self._read(self._readings(row)), *self.parts]
        if self.lead is not None:
            names = [*names, *self.lead.parts] if row == self.lead.row else list(self.parts)
        given = {"source": source, "against": against}
        parts = tuple(
            name
            for name in dict.fromkeys(names)
            if all(given[need] for need in known[name].needs if need in given)
        )
        taken = {field for name in parts for field in (*known[name].needs, *known[name].takes)}
        return Wanted(parts, source if "source" in taken else None, against if "against" in taken else ())

    def _compared(self, numbers: Mapping[str, Mapping[str, Any]]) -> Comparison:
        def cell(name: str, column: Column) -> Cell:
            printed = self.rows[name].printed.get(column.key)
            mean, spread = printed if isinstance(printed, tuple) else (printed, None)
            scale = PRINTED.get(column.unit, 1)
            return Cell(
                ours=_number(numbers.get(self.rows[name].of or name, {}), self.rows[name].path(column)),
                paper=None if mean is None else mean / scale,
                spread=None if spread is None else spread / scale,
            )

        rows = {
            name: tuple(cell(name, column) for column in self.columns)
            for name, row in self.rows.items()
            if not row.only_lent
        }
        # Of a table that one row has alone, the others are there to be compared with in its figure.
        rows = {
            name: cells
            for name, cells in rows.items()
            if any(entry.ours is not None or entry.paper is not None for entry in cells)
        }
        return Comparison(
            self.title, self.columns, rows, {name: row.label for name, row in self.rows.items()}
        )

    def _copied(self, plan: Plan, found: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
        """The lead's figures, copied to where the table's numbers go."""
        assert self.lead is not None
        run = next(run for run in plan.runs if run.method == self.lead.row)
        document = found[self.lead.row]
        drawn = [
            run.path / name
            for part in self.lead.parts
            for name in document["parts"][part]["figures"]
            if not self.lead.figures or any(word in Path(name).stem for word in self.lead.figures)
        ]
        copies = []
        for file in drawn:
            stem = (
                self.name if len(drawn) == 1 else f"{self.name}-{file.stem.removeprefix(self.protocol + '-')}"
            )
            copies.append(folder / f"{stem}{file.suffix}")
            try:
                shutil.copyfile(file, copies[-1])
            except OSError as error:
                raise UserError(
                    f"cannot copy {file} to {copies[-1]}: {error.strerror}; delete {run.path / 'evaluation'} and run "
                    f"this again"
                ) from error
        return copies


_IDENTITY = ("dataset", "model", "network", "method", "objective")


def _number(numbers: Mapping[str, Any], key: str) -> float | None:
    """What a path leads to; None where it leads nowhere."""
    found: Any = numbers
    for step in key.split("."):
        if isinstance(found, list):
            found = found[int(step)] if step.isdecimal() and int(step) < len(found) else None
        else:
            found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _smoke_model(model: str) -> str:
    if model.startswith(("inception", "resnetv2")):
        return "wide_resnet10_1"
    return SMOKE_MODELS.get(model, model)


def _checkpoint(run: PlannedRun) -> Literal["last", "best"]:
    """The best weights where the configuration has them chosen by images that were set aside, else the last."""
    return "best" if run.config.early_stop else "last"


def _reported(run: RunRecord, protocol: str) -> dict[str, Any] | None:
    """The parts' numbers of all test images: by the best weights where the configuration has them chosen by images that
    were set aside and they were evaluated, else by the last."""
    chosen = [("best", False)] if run.config.early_stop else []
    for name, whole in (*chosen, ("last", True)):
        try:
            document = json.loads(document_path(run.path, protocol, whole=whole).read_text())
            if (document["checkpoint"]["name"], document["images"]) == (name, document["images_in_split"]):
                return {part: stored["numbers"] for part, stored in document["parts"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _epochs(run: PlannedRun) -> int:
    metrics = run.path / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
