"""What a run's folder says of the run: configuration, machine, epochs behind it, evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustfast.errors import UserError
from robustfast.evaluation import document as documents
from robustfast.evaluation import sweep_document
from robustfast.evaluation.aat import FILE
from robustfast.evaluation.curves import Series, metric_lines, series
from robustfast.training.config import TrainConfig, to_json
from robustfast.training.run_folder import RunFolder

__all__ = ["RunRecord", "flat_config", "read_runs"]


@dataclass(frozen=True)
class RunRecord:
    """One run, without its weights.

    Attributes:
        label: what it is called beside the others: its folder's name, or the path where two have the same name.
        folder: where it lies, its configuration, version and commit.
        started: when, as ISO 8601; None where an older version did not write it.
        hardware: name to value, as the machine described itself when the run was started.
        epochs: epochs that are finished.
        stopped_early: whether early stopping ended it.
        series: every number of metrics.jsonl over the epochs.
        document: the evaluation by the data set's own attacks; None where the run was not evaluated.
        sweeps: evaluations of accuracy against eps by their protocol, "sweep" and "autoattack", where there are any.
    """

    label: str
    folder: RunFolder
    started: str | None
    hardware: Mapping[str, Any]
    epochs: int
    stopped_early: bool
    series: Mapping[str, Series]
    document: Mapping[str, Any] | None
    sweeps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def config(self) -> TrainConfig:
        return self.folder.config

    @property
    def ways(self) -> str:
        """The ways this run trains, in the order "srn"."""
        return self.config.ways

    @property
    def finished(self) -> bool:
        return self.stopped_early or self.epochs >= self.config.epochs

    @property
    def status(self) -> str:
        """How far the run is, in words."""
        of = self.config.epochs
        if self.stopped_early:
            return f"stopped early after epoch {self.epochs} of {of}"
        if self.finished:
            return f"finished, {of} epoch{'s' if of > 1 else ''}"
        return f"unfinished, {self.epochs} of {of} epochs"

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Which weights there are to look at, of "last" and "best"."""
        files = {"last": ("last.pt", "previous.pt"), "best": ("best.pt",)}
        folder = self.folder.checkpoints
        return tuple(
            name for name, any_of in files.items() if any((folder / file).exists() for file in any_of)
        )


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read the folders of several runs.

    Raises:
        UserError: a folder twice, none of a run, or a file of it that is damaged or of another version.
    """
    resolved = [path.resolve() for path in paths]
    for position, path in enumerate(resolved):
        if path in resolved[:position]:
            raise UserError(f"{paths[position]} is named twice: name each run once")
    names = [path.name for path in resolved]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    # A name may hold bytes that are no letters.
    labels = [os.fsencode(label).decode(errors="replace") for label in labels]
    return [_read(path, label) for path, label in zip(paths, labels, strict=True)]


def flat_config(config: TrainConfig) -> dict[str, Any]:
    """Every field of a configuration by the name its flag has ("attack.eps"), in order."""
    flat: dict[str, Any] = {}
    for name, value in to_json(config).items():
        entries = (
            {f"{name}.{key}": entry for key, entry in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        flat |= entries
    return flat


def _read(path: Path, label: str) -> RunRecord:
    folder = RunFolder.open(path)
    raw = json.loads((path / "config.json").read_text())
    hardware = raw.get("hardware", {})
    if not isinstance(hardware, dict):
        raise UserError(
            f"{path / 'config.json'} is damaged (hardware is {hardware!r}); put it back from a copy"
        )
    lines = metric_lines(folder.metrics)
    ended = {key: value for key, value in lines[-1].items() if key == "stopped_early"} if lines else {}
    numbers = [{key: value for key, value in line.items() if key != "stopped_early"} for line in lines]
    document = documents.read(path / FILE) if (path / FILE).exists() else None
    return RunRecord(
        label,
        folder,
        raw.get("started"),
        hardware,
        epochs=lines[-1]["epoch"] if lines else 0,
        stopped_early=bool(ended.get("stopped_early")),
        series=series(folder.metrics, numbers),
        document=document,
        sweeps={
            protocol: sweep_document.read(file)
            for protocol in sweep_document.PROTOCOLS
            if (file := path / "evaluation" / f"{protocol}.json").exists()
        },
    )
