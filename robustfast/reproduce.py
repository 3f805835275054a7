"""Make a paper's table or figure: ``python -m robustfast.reproduce aat-table2 --scale smoke|small|paper``.

Trains the runs that are missing, evaluates them, and prints ours beside the paper's. Interrupted at any moment, the
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
from robustfast.evaluation.comparison import Comparison
from robustfast.evaluation.cost import passes_left, seconds_per_pass
from robustfast.evaluation.papers import ITEMS, PAPERS
from robustfast.evaluation.reduced_data import REDUCIBLE, reduced_data
from robustfast.evaluation.reproducible import SCALES, Plan, PlannedRun, Result
from robustfast.evaluation.reproduction import finished_epochs, plan
from robustfast.evaluation.tables import comparison_markdown, comparison_table
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.signals import Stopped, signal_behind
from robustfast.training.checkpoint import write_durably
from robustfast.training.fit import data_folder, fit, resume
from robustfast.training.run_folder import resolve_device

__all__ = ["main", "that_fit"]

PROG = "python -m robustfast.reproduce"


@dataclass(frozen=True)
class Arguments:
    """What the command line can say."""

    table: Annotated[str, tyro.conf.Positional]
    """Name of a table or figure; they are listed above."""
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
    inception_weights: Path | None = None
    """Weights of the Inception-v3 of the FID (pt_inception-2015-12-05), for tables that have one."""
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
        Arguments,
        argv,
        prog=PROG,
        description="Make a paper's table or figure and put ours beside the printed numbers. "
        + " ".join(f"{paper.title}: {', '.join(paper.items)}." for paper in PAPERS.values()),
    )
    with configured_backend("auto"):
        _reproduce(arguments, Console(highlight=False))


def _reproduce(arguments: Arguments, console: Console) -> None:
    made = _plan(arguments)
    done = _announce(made, console)
    if arguments.dry_run:
        return
    try:
        found = _make_all(made, done, console)
    except KeyboardInterrupt as stop:
        raise Stopped(signal_behind(stop), "the same command goes on from here") from None
    folder = arguments.out / made.scale.name
    _report(made, found, made.item.result(made, found, folder), folder, console)


def _plan(arguments: Arguments) -> Plan:
    """The runs, on the data they will see."""
    item = lookup("table", ITEMS, arguments.table)
    resolve_device(arguments.device)
    folder = arguments.out / arguments.scale
    _, first = next(iter(item.configs(folder).values()))
    data = data_folder(replace(first, data_dir=arguments.data_dir))
    scale = SCALES[arguments.scale]
    if scale.smoke:
        train, test = item.kept(scale, item.scaled(first, scale))
    if scale.smoke and first.dataset in REDUCIBLE:
        data = reduced_data(first.dataset, data, folder / "data" / item.data, train=train, test=test)
    made = plan(
        arguments.table,
        arguments.scale,
        folder,
        data_dir=data,
        device=arguments.device,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        seed=arguments.seed,
    )
    return replace(made, evaluation=made.evaluation.taking(arguments.inception_weights))


def _announce(made: Plan, console: Console) -> dict[str, Mapping[str, Any]]:
    """Say what will run and how long it takes here; return the evaluations that are there already."""
    epochs = {run.method: finished_epochs(run) for run in made.runs}
    documents = {
        run.method: made.evaluation.finished(run, made) for run in made.runs if epochs[run.method] is not None
    }
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
            made.item.label(run.method), str(run.path), state, "-" if left is None else _duration(left)
        )
    console.print(table)
    console.print(made.note, soft_wrap=True)
    if missing:
        total = ("at most " if made.evaluation.at_most else "") + _duration(sum(seconds.values()))
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
    train = load(config.dataset, "train", config.data_dir, image_size=config.image_size)
    test = len(load(config.dataset, "test", config.data_dir, image_size=config.image_size))
    unit = seconds_per_pass(config, train)
    seconds = {
        run.method: unit
        * passes_left(
            run.config,
            run.ways,
            made.evaluation.passes(run, made),
            epochs=epochs[run.method] or 0,
            train=len(train),
            test=made.images or test,
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


def _make_all(
    made: Plan, done: Mapping[str, Mapping[str, Any]], console: Console
) -> dict[str, Mapping[str, Any]]:
    """The evaluations by row: what is missing is trained, from wherever it is, and evaluated."""
    found: dict[str, Mapping[str, Any]] = {}
    missing = [run for run in made.runs if run.method not in done]
    if made.evaluation.waits:
        for run in missing:
            _train(run, made, console)
        # What was trained just now may be what others were evaluated with: they keep of it what still fits.
        missing = list(made.runs) if missing else []
    for run in made.runs:
        if run not in missing:
            found[run.method] = done[run.method]
            continue
        if not made.evaluation.waits:
            _train(run, made, console)
        found[run.method] = made.evaluation.make(run, made, console)
    return found


def _train(run: PlannedRun, made: Plan, console: Console) -> None:
    """Train a run to its end, from wherever it is."""
    began = time.perf_counter()
    console.print(f"\n{made.item.label(run.method)}: {run.path}", style="bold")
    if finished_epochs(run) is None:
        fit(run.config)
    else:
        resume(run.path, run.config)
    console.print(f"{made.item.label(run.method)}: trained in {_duration(time.perf_counter() - began)}")


def _report(
    made: Plan, found: Mapping[str, Mapping[str, Any]], result: Result, folder: Path, console: Console
) -> None:
    values = {
        "table": made.table,
        "title": made.item.title,
        "scale": made.scale.name,
        "comparable": made.scale.comparable,
        "note": made.note,
        **made.evaluation.as_json(),
        "images": {method: document["images"] for method, document in found.items() if "images" in document},
        "runs": {run.method: str(run.path) for run in made.runs},
        **result.values,
    }
    written = [folder / f"{made.table}.json"]
    if result.comparison is not None:
        values |= result.comparison.as_json()
        written.append(folder / f"{made.table}.md")
        _write(written[1], comparison_markdown(result.comparison, made.note))
    _write(written[0], json.dumps(values, indent=2, allow_nan=False) + "\n")
    written += result.figures
    console.print()
    for table in that_fit(result.comparison, made.note, console) if result.comparison is not None else ():
        console.print(table)
    console.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)


def that_fit(comparison: Comparison, note: str, console: Console) -> list[Table]:
    """The comparison as one table, or as several of fewer columns where the screen is too narrow; the last has the
    note."""
    unbounded = console.options.update(width=10_000)
    # Names of rows may be wrapped, numbers and headings may not.
    labels = {row: max(comparison.label(row).split(), key=len) for row in comparison.rows}
    parts, first = [], 0
    for last in range(2, len(comparison.columns) + 1):
        wider = comparison_table(replace(comparison.of_columns(first, last), labels=labels))
        if last - first > 1 and console.measure(wider, options=unbounded).maximum > console.width:
            parts.append(comparison.of_columns(first, last - 1))
            first = last - 1
    parts.append(comparison.of_columns(first, len(comparison.columns)))
    return [comparison_table(part, note if part is parts[-1] else "") for part in parts]


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
