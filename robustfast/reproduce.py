"""Make a table of the paper: ``python -m robustfast.reproduce aat-table2 --scale smoke|small|paper``.

Trains the rows that are missing, evaluates them, and prints ours beside the paper's. Interrupted at any moment, the
same command goes on where it stopped: finished rows are kept, a half-trained one is resumed.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from robustfast.command_line import main_wrapper, parse
from robustfast.data import load
from robustfast.evaluation.aat import FILE, evaluate_run
from robustfast.evaluation.comparison import Comparison, compare, method_label
from robustfast.evaluation.cost import passes_left, seconds_per_pass
from robustfast.evaluation.paper import TABLES
from robustfast.evaluation.reduced_data import reduced_data
from robustfast.evaluation.reproduction import (
    FAMILIES,
    SCALES,
    Plan,
    PlannedRun,
    evaluated,
    finished_epochs,
    plan,
    rows,
)
from robustfast.evaluation.tables import comparison_markdown, comparison_table
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.signals import Stopped, signal_behind
from robustfast.training.checkpoint import write_durably
from robustfast.training.fit import data_folder, fit, resume
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import resolve_device
from robustfast.visualization import ablation_bars

__all__ = ["main"]

PROG = "python -m robustfast.reproduce"


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    table: Annotated[str, tyro.conf.Positional]
    """Table of the paper: aat-table1, 2, 3, 4b, 6, 7 or 8, or aat-ablation (figure 2b)."""
    scale: Literal["smoke", "small", "paper"] = "smoke"
    """smoke: minutes, shows that it runs; small: a tenth of the epochs; paper: everything."""
    out: Path = Path("runs") / "reproduce"
    """Folder of the runs, shared by all tables."""
    data_dir: Path | None = None
    """Folder of the data sets; without it $ROBUSTFAST_DATA, else ./data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train and evaluate; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of training; evaluation is always fp32."""
    channels_last: bool = False
    """Memory layout NHWC, for training and evaluation."""
    seed: int = 0
    """Seed of every run."""
    dry_run: bool = False
    """Say what would run and how long it would take, and stop."""


def main(argv: Sequence[str]) -> None:
    """Make the table that the arguments name.

    Raises:
        UserError: a mistake in the arguments, missing data, or a folder with something else in it.
    """
    arguments = parse(
        Arguments, argv, prog=PROG, description="Make a table of the paper and put ours beside it."
    )
    with configured_backend("auto"):
        _reproduce(arguments, Console(highlight=False))


def _reproduce(arguments: Arguments, console: Console) -> None:
    made = _plan(arguments)
    done = _announce(made, console)
    if arguments.dry_run:
        return
    try:
        found = {run.method: done.get(run.method) or _make(run, made, console) for run in made.runs}
    except KeyboardInterrupt as stop:
        raise Stopped(signal_behind(stop), "the same command goes on from here") from None
    _report(made, rows(made.table, found), arguments.out / made.scale.name, console)


def _plan(arguments: Arguments) -> Plan:
    """The runs, on the data they will see."""
    family = lookup("table", FAMILIES, arguments.table)
    resolve_device(arguments.device)
    preset = PRESETS[f"{family}-aatpp"]
    folder = arguments.out / arguments.scale
    data = data_folder(replace(preset, data_dir=arguments.data_dir))
    if smoke := SCALES[arguments.scale].smoke:
        train, test = smoke[preset.model]
        data = reduced_data(preset.dataset, data, folder / "data" / family, train=train, test=test)
    return plan(
        arguments.table,
        arguments.scale,
        folder,
        data_dir=data,
        device=arguments.device,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        seed=arguments.seed,
    )


def _announce(made: Plan, console: Console) -> dict[str, dict[str, Any]]:
    """Say what will run and how long it takes here; return the evaluations that are there already."""
    epochs = {run.method: finished_epochs(run) for run in made.runs}
    documents = {run.method: evaluated(run, made) for run in made.runs if epochs[run.method] is not None}
    finished = {method: document for method, document in documents.items() if document is not None}
    missing = [run for run in made.runs if run.method not in finished]
    seconds, basis = _estimate(made, missing, epochs) if missing else ({}, "")
    table = Table(title=f"{made.table} at scale {made.scale.name}: what will run")
    for heading in ("row", "run folder", "state"):
        table.add_column(heading, overflow="fold")
    table.add_column("estimate", justify="right")
    for run in made.runs:
        left = seconds.get(run.method)
        state = _state(run, epochs[run.method], run.method in finished)
        table.add_row(
            method_label(run.method), str(run.path), state, "-" if left is None else _duration(left)
        )
    console.print(table)
    console.print(made.note, soft_wrap=True)
    if missing:
        total = _duration(sum(seconds.values()))
        console.print(
            f"estimate: {total}, {basis}; interrupted at any time, the same command goes on from there",
            soft_wrap=True,
        )
    else:
        console.print("nothing to run: all rows are finished")
    return finished


def _estimate(
    made: Plan, missing: Sequence[PlannedRun], epochs: Mapping[str, int | None]
) -> tuple[dict[str, float], str]:
    """Seconds that each missing run takes here, and in words what that rests on."""
    config = missing[0].config
    train = load(config.dataset, "train", config.data_dir)
    test = len(load(config.dataset, "test", config.data_dir))
    unit = seconds_per_pass(config, train)
    seconds = {
        run.method: unit
        * passes_left(
            run.config,
            run.ways,
            made.attacks,
            epochs=epochs[run.method] or 0,
            train=len(train),
            test=made.scale.test_images or test,
        )
        for run in missing
    }
    device = resolve_device(config.device)
    return seconds, f"from {1000 * unit:.3g} ms measured on this {device.type} for one pass of one image"


def _state(run: PlannedRun, epochs: int | None, is_evaluated: bool) -> str:
    if is_evaluated:
        return "finished"
    if epochs is None:
        return f"new: {run.config.epochs} epoch{'s' if run.config.epochs > 1 else ''}"
    if epochs == run.config.epochs:
        return "trained, to be evaluated"
    return f"continues after epoch {epochs} of {run.config.epochs}"


def _make(run: PlannedRun, made: Plan, console: Console) -> dict[str, Any]:
    """Train a run to its end, from wherever it is, and evaluate it."""
    began = time.perf_counter()
    console.print(f"\n{method_label(run.method)}: {run.path}", style="bold")
    if finished_epochs(run) is None:
        fit(run.config)
    else:
        resume(run.path, run.config)
    document = evaluate_run(
        run.path,
        made.attacks,
        images=made.scale.test_images,
        device=run.config.device,
        data_dir=run.config.data_dir,
        console=console,
        file=FILE,
    )
    console.print(f"{method_label(run.method)}: done in {_duration(time.perf_counter() - began)}")
    return document


def _report(made: Plan, found: Mapping[str, Mapping[str, Any]], folder: Path, console: Console) -> None:
    comparison = compare(TABLES[made.table], found)
    values = {
        "table": made.table,
        "scale": made.scale.name,
        "comparable": made.scale.comparable,
        "note": made.note,
        "attacks": [attack.as_json() for attack in made.attacks],
        "images": {method: document["images"] for method, document in found.items() if "images" in document},
        "runs": {run.method: str(run.path) for run in made.runs},
        **comparison.as_json(),
    }
    written = [folder / f"{made.table}.json", folder / f"{made.table}.md"]
    _write(written[0], json.dumps(values, indent=2, allow_nan=False) + "\n")
    _write(written[1], comparison_markdown(comparison, made.note))
    if made.table == "aat-ablation":
        written.append(_draw_ablation(comparison, folder / f"{made.table}.png"))
    console.print()
    console.print(comparison_table(comparison, made.note))
    console.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)


def _draw_ablation(comparison: Comparison, path: Path) -> Path:
    keys = [column.key for column in comparison.columns]
    (attack,) = {key.split(".")[0] for key in keys} - {"natural"}
    shown = ["natural.s", *(f"{attack}.adversarial.{name}" for name in ("r", "n", "dia"))]
    bars = {
        method_label(method): [cells[keys.index(key)].ours for key in shown]
        for method, cells in comparison.rows.items()
    }
    return ablation_bars(bars, path, title=f"{comparison.title} ({attack})")


def _write(path: Path, text: str) -> None:
    write_durably(path, lambda file: file.write(text.encode()))


def _duration(seconds: float) -> str:
    """Seconds as a reader thinks of them: "42 s", "3.5 min", "7.2 h", "12 days"."""
    units: list[tuple[float, str, Callable[[float], str]]] = [
        (60, "s", lambda value: f"{value:.0f}"),
        (3600, "min", lambda value: f"{value / 60:.1f}"),
        (48 * 3600, "h", lambda value: f"{value / 3600:.1f}"),
    ]
    for limit, unit, show in units:
        if seconds < limit:
            return f"{show(seconds)} {unit}"
    return f"{seconds / 86400:.0f} days"


if __name__ == "__main__":
    sys.exit(main_wrapper(main))
