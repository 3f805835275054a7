"""What a table or figure of a paper is made of: runs, their evaluation, and what is made of that.

A paper's tables and figures are instances of `Reproducible` in a module of their own
(`robustfast.evaluation.papers`); everything about them is said there, and the rest of the package knows no paper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console

from robustfast.evaluation.comparison import Comparison
from robustfast.evaluation.reduced_data import REDUCIBLE, TREES
from robustfast.evaluation.run_record import RunRecord
from robustfast.training.config import TrainConfig

__all__ = [
    "SCALES",
    "SMOKE_STEPS",
    "Evaluation",
    "Plan",
    "PlannedRun",
    "Reproducible",
    "Result",
    "Scale",
    "at_scale",
    "settings_steps",
]

SMOKE_STEPS = 2


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

    def kept(self, model: str) -> tuple[int, int]:
        """The (training, test) images of a smoke run; of a backbone that is not listed as of the largest."""
        assert self.smoke is not None
        return self.smoke.get(model) or min(self.smoke.values())


SCALES = {
    # Sized so that each table takes minutes on two cores: a forward pass is 0.05, 1.1 and 13 GFLOP in the first three.
    # The others are evaluated by whole protocols, thousands of passes an image, hence on few.
    "smoke": Scale(
        "smoke",
        False,
        0.0,
        None,
        {
            "small_cnn": (1024, 256),
            "preact_resnet18": (128, 64),
            "wide_resnet34_10": (16, 4),
            "digits_cnn": (1024, 16),
            "narrow_resnet": (256, 8),
            "wide_resnet10_1": (128, 4),
        },
    ),
    "small": Scale("small", False, 0.1, 1000),
    "paper": Scale("paper", True, 1.0, None),
}
"""Scales by name."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a table.

    Attributes:
        method: its row.
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
        return self.config.ways


class Evaluation(ABC):
    """How the runs of a table are evaluated at a scale.

    Attributes:
        waits: whether it takes other runs of the table, so that all of them are trained before the first is evaluated.
        at_most: whether `passes` is a bound: attacks leave an image alone that is fooled.
    """

    waits: ClassVar[bool] = False
    at_most: ClassVar[bool] = False

    @abstractmethod
    def finished(self, run: PlannedRun, plan: Plan) -> Mapping[str, Any] | None:
        """The evaluation of a run, if it is there and the one that the plan asks for; None where it must be made."""

    @abstractmethod
    def make(self, run: PlannedRun, plan: Plan, console: Console) -> Mapping[str, Any]:
        """Evaluate a trained run; what is there already of it is kept."""

    @abstractmethod
    def passes(self, run: PlannedRun, plan: Plan) -> float:
        """F per test image, as `robustfast.evaluation.cost` counts them."""

    def taking(self, inception_weights: Path | None) -> Evaluation:
        """The same with a file of Inception's weights, where it has a use for one."""
        return self

    def as_json(self) -> dict[str, Any]:
        """What the numbers were found with, as plain values."""
        return {}


@dataclass(frozen=True)
class Plan:
    """Everything a table needs.

    Attributes:
        table: its name.
        item: what it is.
        scale: how much is done.
        runs: in the order in which they must be made: some are made from the models of others.
        evaluation: of each of them.
    """

    table: str
    item: Reproducible
    scale: Scale
    runs: tuple[PlannedRun, ...]
    evaluation: Evaluation

    @property
    def images(self) -> int | None:
        """How many test images are evaluated; None is all that there are."""
        return self.item.images(self.scale, self.runs[0].config)

    @property
    def note(self) -> str:
        """What a reader of the numbers must know about the scale, and about the table."""
        config = self.runs[0].config
        if self.scale.smoke:
            train, test = self.item.kept(self.scale, config)
            kept = f"{train}" if config.dataset in REDUCIBLE else "all"
            kept += " (or two of each class)" if config.dataset in TREES else ""
            text = (
                f"scale {self.scale.name}: {kept} training images, 1 epoch, {test} test images, {SMOKE_STEPS} attack "
                f"steps. It shows that everything runs; the numbers say nothing about the method."
            )
        elif not self.scale.comparable:
            text = (
                f"scale {self.scale.name}: {config.epochs} epochs, {self.scale.test_images} test images: shorter than "
                f"the paper's, so the numbers are not comparable."
            )
        else:
            text = f"scale {self.scale.name}: the paper's configuration, all test images."
        return " ".join(filter(None, (text, self.item.note(self.scale))))


@dataclass(frozen=True)
class Result:
    """What was made of the evaluations.

    Attributes:
        comparison: ours beside the paper's; None for a figure.
        values: further plain values for the JSON file, such as the numbers behind a figure.
        figures: files that were drawn.
    """

    comparison: Comparison | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Path] = ()


class Reproducible(ABC):
    """A table or figure of a paper.

    Attributes:
        title: what it shows, headed as in the paper.
        data: what the folder of the images that the smoke scale keeps is called; tables with the same have them in
            common.
    """

    title: str
    data: str

    @abstractmethod
    def configs(self, folder: Path) -> dict[str, tuple[str, TrainConfig]]:
        """Row -> (its run's name, its configuration at the paper's scale), in the order in which they must be made.

        Args:
            folder: holds the runs, for those that are made from others.

        Raises:
            UserError: something that it needs is not there.
        """

    @abstractmethod
    def evaluation(self, scale: Scale) -> Evaluation:
        """How the runs are evaluated."""

    @abstractmethod
    def result(self, plan: Plan, found: Mapping[str, Mapping[str, Any]], folder: Path) -> Result:
        """What is made of the evaluations, by row; figures go to `folder`, under names that begin with the table's."""

    @abstractmethod
    def beside(self, run: RunRecord) -> tuple[TrainConfig, Comparison] | None:
        """The preset whose row a run stands in, with that row alone; None where it has none or was not evaluated so."""

    def scaled(self, config: TrainConfig, scale: Scale) -> TrainConfig:
        """A configuration at a scale."""
        return at_scale(config, scale)

    def kept(self, scale: Scale, config: TrainConfig) -> tuple[int, int]:
        """The (training, test) images of a smoke run; tables with the same `data` keep the same."""
        return scale.kept(config.model)

    def images(self, scale: Scale, config: TrainConfig) -> int | None:
        """How many test images are evaluated; None is all that there are, or that the smoke scale keeps."""
        return scale.test_images

    def note(self, scale: Scale) -> str:
        """What a reader of its numbers must know beside the scale; empty where there is nothing."""
        return ""

    def label(self, row: str) -> str:
        """A row as the paper prints it."""
        return row


def at_scale(config: TrainConfig, scale: Scale, *, kept: int | None = None) -> TrainConfig:
    """Fewer epochs, warm-up and milestones to match; at the smoke scale one epoch of small batches and short attacks,
    on `kept` training images or as many as the scale keeps."""
    if scale.smoke:
        train = kept or scale.kept(config.model)[0]
        return replace(
            config,
            epochs=1,
            milestones=(),
            warmup=0.0,
            batch_size=min(config.batch_size, train // 2),
            attack=replace(config.attack, steps=SMOKE_STEPS),
            validate_every=0,
            early_stop=0,
            hold_out=0,
        )
    if scale.epochs == 1:
        return config
    epochs = max(1, round(config.epochs * scale.epochs))
    milestones = {round(milestone * scale.epochs) for milestone in config.milestones}
    return replace(
        config,
        epochs=epochs,
        warmup=min(config.warmup * scale.epochs, epochs / 2),
        milestones=tuple(sorted(m for m in milestones if 0 < m < epochs)),
    )


def settings_steps(config: TrainConfig, scale: Scale, steps: int) -> int:
    """How many of an objective's own `steps` are made at a scale."""
    return SMOKE_STEPS if scale.smoke else max(1, round(steps * scale.epochs))
