"""AAT's table 2 on a shortened schedule, beside the paper's: `python bench/table2.py --minutes 25 --data-dir DATA`.

Trains cifar10-prn18-aatpp, -aat, -at and -st, each for the same number of epochs of a one-cycle schedule, as many as
fit into the time by steps measured beforehand, and evaluates every run by the paper's protocol, in float32 on the whole
test split. Stopped at any moment, the same command goes on: the schedule is kept with the runs, finished rows are not
made again. A run for which a call has no time left waits for the next one, and the file says so.

DATA holds cifar-10-batches-py, or the archives of JPEG images that an `unpack.py` beside them turns into it. Without
images only the steps are timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cdvae import epochs_in
from data_sets import images
from games import SHAPES, measured
from hardware import ROOT, hardware
from rich.console import Console

from robustfast.data import load
from robustfast.errors import UserError
from robustfast.evaluation.attacks import EvaluationAttack
from robustfast.evaluation.comparison import Cell, Comparison
from robustfast.evaluation.cost import evaluation_passes
from robustfast.evaluation.papers import ITEMS
from robustfast.evaluation.papers.aat.tables import FAMILIES, AATEvaluation
from robustfast.evaluation.reproducible import SMOKE_STEPS, Plan, PlannedRun, Scale
from robustfast.evaluation.reproduction import finished_epochs
from robustfast.evaluation.tables import comparison_table
from robustfast.objectives import OBJECTIVES
from robustfast.signals import raised_on_sigterm, signal_behind
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import to_json
from robustfast.training.fit import fit, resume
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import resolve_device
from robustfast.training.threads import cpu_threads

TABLE = "aat-table2"
METHODS = ("aatpp", "aat", "at", "st")
# Of an epoch of the same passes: evaluation is in float32, and launched kernel by kernel.
EVALUATION_COST = 3.0


def schedule(
    timed: Mapping[str, Mapping[str, Any]], seeds: int, seconds: float, evaluated: Sequence[str], test: int
) -> int:
    """How many epochs each run gets, so that all of them and their evaluation take about so many seconds.

    Args:
        timed: method to what `games.measured` returns.
        seeds: runs of each method.
        seconds: for everything.
        evaluated: the attacks of the evaluation.
        test: images of the evaluation.
    """
    epoch = sum(row["epoch_seconds"] for row in timed.values())
    return epochs_in(
        seconds / seeds - sum(evaluation_seconds(row, evaluated, test) for row in timed.values()),
        epoch,
        max(PRESETS[row["preset"]].epochs for row in timed.values()),
    )


def evaluation_seconds(row: Mapping[str, Any], attacks: Sequence[EvaluationAttack], test: int) -> float:
    """About how long one run's evaluation takes, from the seconds of its epoch."""
    config = PRESETS[row["preset"]]
    passes = OBJECTIVES[config.method].passes(config.objective, config.attack) * SHAPES[config.dataset][3]
    return EVALUATION_COST * row["epoch_seconds"] * evaluation_passes(attacks, config.ways) * test / passes


def merged(comparisons: Sequence[Comparison], family: str) -> tuple[Comparison, dict[str, Any]]:
    """The mean over seeds beside the paper's numbers, and the same as plain values with each seed's own.

    Other data than the table's stand beside nothing.
    """
    first = comparisons[0]
    own = family == FAMILIES[TABLE]
    rows: dict[str, tuple[Cell, ...]] = {}
    plain: dict[str, Any] = {}
    for method in first.rows:
        seeds = zip(*(comparison.rows[method] for comparison in comparisons), strict=True)
        cells = []
        for column, found in zip(first.columns, seeds, strict=True):
            ours = [cell.ours for cell in found if cell.ours is not None]
            mean = statistics.mean(ours) if ours else None
            cells.append(Cell(mean, found[0].paper if own else None))
            plain.setdefault(method, {})[column.key] = {
                "ours": mean,
                "paper": cells[-1].paper,
                "difference": cells[-1].difference,
                "sd": statistics.stdev(ours) if len(ours) > 1 else None,
                "seeds": ours,
            }
        rows[method] = tuple(cells)
        if all(cell.ours is None for cell in cells):
            del plain[method]
    title = first.title if own else f"{family}, in the form of {first.title}"
    return replace(first, title=title, rows=rows), plain


def row(run: PlannedRun) -> dict[str, Any]:
    """What is told of a trained run."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    stored = to_json(run.config)
    stored["data_dir"] = None
    return {
        "epochs": len(lines),
        "epoch_seconds": [line["seconds"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "config": stored,
    }


def runs_of(
    options: argparse.Namespace, seed: int, epochs: int, device: torch.device, folder: Path, work: Path
) -> list[PlannedRun]:
    """The runs of one seed, in the order in which they are made."""
    runs = []
    for method in options.methods:
        preset = PRESETS[f"{options.family}-{method}"]
        config = replace(
            preset,
            epochs=epochs,
            schedule="onecycle",
            lr=options.lr,
            milestones=(),
            attack=replace(preset.attack, steps=SMOKE_STEPS) if options.smoke else preset.attack,
            precision=options.precision,
            channels_last=options.channels_last,
            whole_step=options.whole_step,
            device=device.type,
            data_dir=folder,
            validate_every=0,
            tensorboard=False,
            seed=seed,
            out=work / f"{method}-seed{seed}",
        )
        runs.append(PlannedRun(method, config))
    return runs


def stored_plan(options: argparse.Namespace, device: torch.device, file: Path) -> dict[str, Any]:
    """Seconds of the methods' epochs, measured where they are not known, and the epochs that earlier calls settled on.

    With epochs given nothing is measured: whatever time they take is taken.
    """
    stored = json.loads(file.read_text()) if file.exists() else {"timed": {}, "epochs": None}
    if options.epochs is not None:
        return {"timed": {}, "epochs": options.epochs}
    for method in options.methods:
        if method not in stored["timed"]:
            preset = f"{options.family}-{method}"
            stored["timed"][method] = measured(preset, f"{options.family}-at", device, options)
    return stored


def make(options: argparse.Namespace, console: Console) -> None:
    """Train, evaluate and compare, and write the file after each step of it."""
    began = time.monotonic()
    device = resolve_device(options.device)
    gpu = device.type == "cuda"
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    options.channels_last = gpu if options.channels_last is None else options.channels_last
    out = (options.out or ROOT / "bench" / "results" / f"table2-{device.type}.json").resolve()
    # Beside the file, so that the same command finds its runs again.
    work = out.with_name(f"{out.stem}-runs")
    work.mkdir(parents=True, exist_ok=True)
    item, first = ITEMS[TABLE], PRESETS[f"{options.family}-{options.methods[0]}"]
    folder, name = images(first, options.data_dir, work)
    plan_file = work / "plan.json"
    stored = stored_plan(options, device, plan_file)
    timed: dict[str, Any] = stored["timed"]
    report: dict[str, Any] = {
        "what": f"{item.title}, on a shortened schedule",
        "hardware": hardware(device),
        "data": name,
        "minutes": options.minutes,
        "timed": timed,
        "timed_on": "random images",
        "runs": {},
        "rows": {},
        "not_run": {},
    }

    def keep(file: Path, values: Any) -> None:
        text = json.dumps(values, indent=1, allow_nan=False) + "\n"
        write_durably(file, lambda opened: opened.write(text.encode()))

    def left() -> float:
        return 60 * options.minutes - (time.monotonic() - began)

    if folder is None:
        report["not_run"] = dict.fromkeys(options.methods, name)
        keep(out, report)
        console.print(f"no run: {name}", markup=False, soft_wrap=True)
        return
    split = len(load(first.dataset, "test", folder))
    test = min(options.images or split, split)
    scale = Scale("shortened", False, 1.0, test)
    evaluation = item.evaluation(scale)
    assert isinstance(evaluation, AATEvaluation)
    if options.smoke:
        attacks = (replace(a, strength=replace(a.strength, steps=SMOKE_STEPS)) for a in evaluation.attacks)
        evaluation = AATEvaluation(tuple(attacks))
    if stored["epochs"] is None:
        stored["epochs"] = schedule(timed, len(options.seeds), left(), evaluation.attacks, test)
    epochs = stored["epochs"]
    keep(plan_file, stored)
    report |= {
        "epochs": epochs,
        "epochs_of_the_paper": first.epochs,
        "seeds": options.seeds,
        "images": test,
        "evaluation": evaluation.as_json(),
    }
    made = False
    found: dict[int, dict[str, Mapping[str, Any]]] = {seed: {} for seed in options.seeds}
    for seed in options.seeds:
        plan = Plan(
            TABLE, item, scale, tuple(runs_of(options, seed, epochs, device, folder, work)), evaluation
        )
        for run in plan.runs:
            label = f"{run.method}-seed{seed}"
            # First, since it refuses a run that is there of another configuration.
            trained = finished_epochs(run)
            document = evaluation.finished(run, plan)
            if document is None:
                if run.method in timed:
                    needed = (epochs - (trained or 0)) * timed[run.method]["epoch_seconds"]
                    needed += evaluation_seconds(timed[run.method], evaluation.attacks, test)
                    # The first run that is missing is always made: a call that did nothing would never end.
                    if needed > left() and made:
                        report["not_run"][label] = (
                            f"takes about {needed:.0f} s, {max(0.0, left()):.0f} s were left"
                        )
                        keep(out, report)
                        continue
                made = True
                fit(run.config) if trained is None else resume(run.path, run.config)
                with cpu_threads(run.config.threads):
                    document = evaluation.make(run, plan, console)
            found[seed][run.method] = document
            report["runs"][label] = row(run)
            comparison, report["rows"] = merged(
                [item.result(plan, documents, work).comparison for documents in found.values() if documents],
                options.family,
            )
            keep(out, report)
    console.print(
        comparison_table(comparison, f"{epochs} of {first.epochs} epochs, {name}, {test} test images")
    )
    for label, reason in report["not_run"].items():
        console.print(f"{label}: not run: {reason}; the same command goes on", markup=False, soft_wrap=True)
    console.print(f"written: {out}", markup=False, soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25.0, help="of one call, training and evaluation")
    parser.add_argument("--epochs", type=int, help="of each run, instead of as many as fit")
    parser.add_argument("--lr", type=float, default=0.1, help="the highest of the cycle")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--family", default=FAMILIES[TABLE], help="of the presets FAMILY-METHOD")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of training; default: bf16 on a GPU")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--whole-step", default="eager", choices=("eager", "graph"))
    parser.add_argument("--images", type=int, help="test images of the evaluation; default all")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--smoke", action="store_true", help="attacks of two steps, to try this script")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, help="JSON file; without it table2-DEVICE.json in bench/results")
    try:
        # A run that is told to end keeps its step.
        with raised_on_sigterm():
            make(parser.parse_args(), Console(highlight=False))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped; the same command goes on ({stop})", file=sys.stderr)
        return 128 + signal_behind(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
