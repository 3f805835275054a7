"""Which runs a table needs at which scale, and how far each of them is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustfast.errors import UserError
from robustfast.evaluation.papers import ITEMS
from robustfast.evaluation.reproducible import SCALES, Plan, PlannedRun
from robustfast.registry import lookup
from robustfast.training.config import differences
from robustfast.training.run_folder import RunFolder

__all__ = ["finished_epochs", "plan"]


def plan(table: str, scale: str, folder: Path, *, data_dir: Path, **fields: Any) -> Plan:
    """Lay out the runs of a table.

    Args:
        table: one of `robustfast.evaluation.papers.ITEMS`.
        scale: one of `SCALES`.
        folder: where the runs of this scale lie, each in a folder of its own.
        data_dir: the data sets, or what the smoke scale keeps of them.
        fields: fields of `TrainConfig` for all runs, such as device, precision or seed.

    Raises:
        UserError: an unknown table or scale, or one that needs what is not there.
    """
    item = lookup("table", ITEMS, table)
    size = lookup("scale", SCALES, scale)
    runs = []
    for method, (name, config) in item.configs(folder).items():
        config = replace(config, data_dir=data_dir, out=folder / name, **fields)
        runs.append(PlannedRun(method, item.scaled(config, size)))
    return Plan(table, item, size, tuple(runs), item.evaluation(size))


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
