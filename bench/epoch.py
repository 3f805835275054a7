"""Seconds per epoch of PGD-10 adversarial training on CIFAR-sized images, everything included.

    python bench/epoch.py                       # the whole grid, on a GPU
    python bench/epoch.py --engines eager graph --loaders resident --rounds 3
    python bench/epoch.py --model wide_resnet34_10 --limit 1200

An epoch is what `robustfast.train` does in one: loading, cropping and mirroring, the attack, the training pass, the
optimizer, the smaller last batch. Batch norms are in eval mode inside the attack and in train mode outside, in ours
and in the baselines alike. What comes before the first timed epoch (compiling, cuDNN's choice of algorithms, the first
captures) is reported apart; a graph of the whole step is captured anew in each epoch, which is timed.

Two baselines stand beside the grid: "people" (eager, contiguous, torch's default precision, an attack that calls
`loss.backward()`, a DataLoader over single images) and "plain" (the same code at the precision, in the layout and on
the images of each of ours). First one gradient of ours is held against the plain code's, in float64. The cell that is
likely to be the fastest is measured first, and every cell is written as soon as it is; one that cannot run keeps its
reason. The fastest of ours is named under "best".

Of a network that takes more than 5 GFLOP for a pass over one image, only bfloat16 in channels-last is measured, on the
images that lie on the device, in two rounds, and nothing is compiled; --engines and the like ask for more.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from bench_loaders import PerSample
from hardware import ROOT, hardware
from measure import forward_flops, not_folded
from plain_training import PlainTraining
from rich.console import Console
from rich.table import Table
from torch import Tensor

from robustfast.attacks import AttackConfig
from robustfast.attacks.folding import folding
from robustfast.data import Batch, Dataset, Feed, feed, load
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.ops import random_start
from robustfast.seeds import derive
from robustfast.training.compiled import compile_encoders
from robustfast.training.engine import Engine
from robustfast.training.metrics import Meter
from robustfast.training.presets import PRESETS
from robustfast.training.whole_step import WholeStep

LOADERS = ("resident", "dali")
# In the order of measuring: compiling takes longest, and is what a --limit leaves out first.
ENGINES = ("plain", "eager", "graph", "whole", "compile")
PRECISIONS = ("fp32", "bf16")
LAYOUTS = ("contiguous", "channels-last")
# Whether an attack runs the encoders folded; "-" where no attack of ours is made.
FOLDS = ("on", "off")
# FLOPs of a pass over one image from which on a network is large.
LARGE = 5e9
# Two eager steps before a whole step is captured, and some replays.
WARM_UP = 6
SEED = 0
# One gradient of ours against the plain code's, relative, in float64. In float32 rounding flips signs in the attack,
# and a network's first gradient after ten of its steps says nothing.
GRADIENT_ERROR = 1e-6
# Of so many images: GPUs are slow in float64.
CHECKED = 16

Step = Callable[[Batch], object]


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    loader: str
    engine: str
    precision: str
    layout: str
    fold: str = "-"


PEOPLE = Cell("per-sample", "people", "fp32", "contiguous")
LIKELY = Cell("resident", "whole", "bf16", "channels-last", "on")


@dataclass
class Outcome:
    """What became of a cell.

    Attributes:
        state: "measured", "failed", "skipped", or "eager after all": an engine gave way, and its time would mislead.
        reason: of any other state than "measured".
        seconds: of an epoch, the median of `rounds`.
        rounds: seconds of each epoch timed.
        steps: steps timed in each round; fewer than `steps_in_epoch` where the rest is extrapolated by images.
        setup_seconds: before the first timed epoch.
        images_per_second, peak_memory_bytes: of the timed epochs; no memory on a CPU.
    """

    state: str
    reason: str = ""
    seconds: float | None = None
    rounds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    steps_in_epoch: int = 0
    setup_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None


class GaveWayError(Exception):
    """An engine fell back to another one."""


class PerSampleFeed:
    """The loader of most scripts: a DataLoader over single images, on worker processes, with pinned memory."""

    def __init__(self, dataset: Dataset, batch_size: int, device: torch.device, workers: int) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.loader = torch.utils.data.DataLoader(
            PerSample(dataset),
            batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, (x, y) in enumerate(self.loader):
            if number >= start:
                x, y = (value.to(self.device, non_blocking=True) for value in (x, y))
                yield Batch(x, y, torch.arange(len(y), device=self.device))

    def close(self) -> None:
        # Its workers end with it.
        del self.loader


def plain_step(model: ThreeWay, options: argparse.Namespace, precision: str, channels_last: bool) -> Step:
    """Adversarial training as most scripts have it."""
    training = PlainTraining(model, strength(options))
    optimizer = torch.optim.SGD(
        [*model.encoder_r.parameters(), *model.head.parameters()], lr=0.1, momentum=0.9, weight_decay=5e-4
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def step(batch: Batch) -> None:
        x = batch.x.contiguous(memory_format=layout)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = training.adversarial(x, batch.y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(
    model: ThreeWay, options: argparse.Namespace, cell: Cell
) -> tuple[Step, Callable[[int, float], None]]:
    """A step of ours as `robustfast.train` makes it, and what tells the objective of each."""
    whole = cell.engine == "whole"
    config = dataclasses.replace(
        PRESETS["cifar10-prn18-at"],
        attack=strength(options),
        batch_size=options.batch_size,
        precision=cell.precision,
        channels_last=cell.layout == "channels-last",
        engine="eager" if whole else cell.engine,
        whole_step="graph" if whole else "eager",
    )

    def gave_way(line: str) -> None:
        raise GaveWayError(line)

    if config.engine == "compile":
        compile_encoders(model, say=gave_way)
    objective = OBJECTIVES["at"](
        model, OBJECTIVES["at"].Config(half=False), config.attack, seed=SEED, engine=config.engine
    )
    engine = Engine(objective, config, options.device)
    runner = WholeStep(engine, say=gave_way) if whole else engine
    meter = Meter()

    def step(batch: Batch) -> None:
        with folding(cell.fold):
            meter.add(runner.step(batch, lr=0.1), len(batch.y))

    return step, objective.begin


def strength(options: argparse.Namespace) -> AttackConfig:
    return AttackConfig(eps=8 / 255, step_size=2 / 255, steps=options.steps)


def measure(cell: Cell, dataset: Dataset, options: argparse.Namespace) -> Outcome:
    """Time epochs of one cell."""
    device = options.device
    began = time.perf_counter()
    torch.manual_seed(SEED)
    model = ThreeWay(options.model, num_classes=10, in_channels=3).to(device).train()
    channels_last = cell.layout == "channels-last"
    if channels_last:
        model.to(memory_format=torch.channels_last)
    images: Feed | PerSampleFeed
    if cell.engine == "people":
        images = PerSampleFeed(dataset, options.batch_size, device, options.workers)
    else:
        how = {"augment": True, "channels_last": channels_last, "seed": SEED, "device": device}
        images = feed(dataset, options.batch_size, loader=cell.loader, **how)
    begin: Callable[[int, float], object] = lambda epoch, progress: None  # noqa: E731
    if cell.engine in ("people", "plain"):
        step = plain_step(model, options, cell.precision, channels_last)
    else:
        step, begin = our_step(model, options, cell)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        begin(0, 0.0)
        for number, batch in enumerate(images.batches(0)):
            step(batch)
            if number + 1 == min(WARM_UP, options.warm_up):
                break
        for batch in images.batches(0, start=len(images) - 1):
            step(batch)
        folds = cell.fold == "on" and cell.engine != "compile"
        if folds and (reason := not_folded(model, cell.precision == "bf16")):
            raise GaveWayError(reason)
        synchronise(device)
        setup = time.perf_counter() - began
        timed = []
        for epoch in range(1, options.rounds + 1):
            begin(epoch, epoch / (options.rounds + 1))
            timed.append(epoch_seconds(step, images.batches(epoch), len(dataset), options.seconds, device))
            if time.perf_counter() > options.until:
                break
    finally:
        images.close()
    seconds = statistics.median(t for t, _ in timed)
    return Outcome(
        "measured",
        seconds=seconds,
        rounds=[t for t, _ in timed],
        steps=[steps for _, steps in timed],
        steps_in_epoch=len(range(0, len(dataset), options.batch_size)),
        setup_seconds=setup,
        images_per_second=len(dataset) / seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def epoch_seconds(
    step: Step, batches: Iterator[Batch], images: int, limit: float, device: torch.device
) -> tuple[float, int]:
    """Seconds of one epoch, and how many steps were timed: past `limit` seconds the rest is extrapolated by images."""
    synchronise(device)
    began, done, steps = time.perf_counter(), 0, 0
    for batch in batches:
        step(batch)
        done, steps = done + len(batch.y), steps + 1
        if done < images and time.perf_counter() - began > limit:
            break
    synchronise(device)
    return (time.perf_counter() - began) * images / done, steps


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt(cell: Cell, dataset: Dataset, options: argparse.Namespace) -> Outcome:
    """`measure`, with its failure as an outcome."""
    try:
        with warnings.catch_warnings():
            # An attack that gives way says so as a warning.
            warnings.filterwarnings("error", "attack runs eagerly", RuntimeWarning)
            return measure(cell, dataset, options)
    except (GaveWayError, RuntimeWarning) as error:
        return Outcome("eager after all", str(error))
    except Exception as error:
        if options.traces:
            traceback.print_exc()
        return Outcome("failed", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        # Graphs and their memory, and functions compiled for a model that is gone.
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        gc.collect()
        if options.device.type == "cuda":
            torch.cuda.empty_cache()


def grid(options: argparse.Namespace) -> list[Cell]:
    """The cells in the order in which they are measured.

    The likely fastest of ours comes first, then the baseline, which to see what drifted is also last.
    """
    axes = options.engines, options.precisions, options.layouts, options.loaders
    ours = [
        Cell(loader, engine, precision, layout, fold)
        for engine, precision, layout, loader in product(*axes)
        for fold in (("-",) if engine == "plain" else options.folds)
    ]
    first = [cell for cell in ours if cell == LIKELY]
    rest = [cell for cell in ours if cell != LIKELY]
    return [*first, PEOPLE, *rest, PEOPLE] if options.people else [*first, *rest]


def best(rows: Iterable[tuple[Cell, Outcome]]) -> dict[str, Any] | None:
    """The fastest cell of ours with its seconds; None where none was measured."""
    ours = [(cell, o) for cell, o in rows if cell.engine not in ("people", "plain") and o.seconds]
    if not ours:
        return None
    cell, outcome = min(ours, key=lambda row: row[1].seconds or 0.0)
    return {
        "seconds": outcome.seconds,
        "cell": asdict(cell),
        "extrapolated": min(outcome.steps) < outcome.steps_in_epoch,
        "rounds": outcome.rounds,
    }


def cifar_like(options: argparse.Namespace) -> tuple[Dataset, str]:
    """The images, and what to say of them."""
    if options.data_dir is not None:
        dataset = load("cifar10", "train", options.data_dir)
        images = min(options.images, len(dataset))
        chosen = dataclasses.replace(dataset, images=dataset.images[:images], labels=dataset.labels[:images])
        return chosen, f"the first {images} training images of CIFAR-10"
    generator = torch.Generator().manual_seed(SEED)
    dataset = Dataset(
        name="random",
        images=torch.randint(0, 256, (options.images, 3, 32, 32), generator=generator, dtype=torch.uint8),
        labels=torch.randint(0, 10, (options.images,), generator=generator),
        classes=tuple("0123456789"),
    )
    return (
        dataset,
        f"{options.images} images of random bytes: no accuracy is claimed, and none would come of them",
    )


def write(path: Path, report: dict[str, Any]) -> None:
    """The report, whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def gradient_error(dataset: Dataset, options: argparse.Namespace) -> float:
    """Relative distance of one gradient of ours from that of the plain code with the same draws, both in float64."""
    torch.manual_seed(SEED)
    model = ThreeWay(options.model, num_classes=10, in_channels=3).to(options.device, torch.float64).train()
    count = min(CHECKED, options.batch_size)
    source = feed(dataset, count, loader="resident", seed=SEED, device=options.device)
    batch = next(iter(source.batches(0)))
    batch = batch._replace(x=batch.x.double())

    def same_start(way: str, x: Tensor, y: Tensor, eps: float) -> Tensor:
        return random_start(x, eps=eps, seed=derive(SEED, "pgd", 0, 0), index=batch.index)

    plain = copy.deepcopy(model)
    step, begin = our_step(model, options, Cell("resident", "eager", "fp32", "contiguous", options.folds[0]))
    begin(0, 0.0)
    loss, _ = PlainTraining(plain, strength(options), same_start).adversarial(batch.x, batch.y)
    plain.zero_grad()
    loss.backward()
    step(batch)
    pairs = [
        (ours.grad, theirs.grad)
        for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True)
        if ours.grad is not None and theirs.grad is not None
    ]
    distance = sum(float((a - b).square().sum()) for a, b in pairs)
    return (distance / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def table(rows: Iterable[tuple[Cell, Outcome]], title: str) -> Table:
    """Seconds per epoch and how many times faster than "people": engines and loaders down, the rest across."""
    found: dict[Cell, list[Outcome]] = {}
    for cell, outcome in rows:
        found.setdefault(cell, []).append(outcome)
    seconds = {
        cell: statistics.median(o.seconds for o in outcomes)
        for cell, outcomes in found.items()
        if all(o.seconds for o in outcomes)
    }
    columns = list(dict.fromkeys((cell.precision, cell.layout) for cell in found))
    shown = Table("engine", "loader", "fold", *(" ".join(column) for column in columns), title=title)
    for engine, loader, fold in dict.fromkeys((cell.engine, cell.loader, cell.fold) for cell in found):
        texts = []
        for column in columns:
            cell = Cell(loader, engine, *column, fold)
            if cell in seconds:
                ratio = f" ({seconds[PEOPLE] / seconds[cell]:.2f}x)" if PEOPLE in seconds else ""
                whole = all(min(o.steps) == o.steps_in_epoch for o in found[cell])
                texts.append(f"{'' if whole else '~'}{seconds[cell]:.3g} s{ratio}")
            else:
                texts.append(found[cell][0].state if cell in found else "")
        shown.add_row(engine, loader, fold, *texts)
    return shown


def fill_in(options: argparse.Namespace) -> None:
    """What was not asked for: the whole grid, or of a large network what fits into twenty minutes of an H200."""
    with torch.device("meta"):
        encoder = ThreeWay(options.model, num_classes=10, in_channels=3).encoder_r
    large = forward_flops(encoder, (1, 3, 32, 32)) > LARGE
    options.until = time.perf_counter() + options.limit
    options.rounds = options.rounds or (2 if large else 3)
    options.loaders = options.loaders or (("resident",) if large else LOADERS)
    options.engines = options.engines or (("plain", "eager", "graph", "whole") if large else ENGINES)
    options.precisions = options.precisions or (("bf16",) if large else PRECISIONS)
    options.layouts = options.layouts or (("channels-last",) if large else LAYOUTS)
    options.folds = options.folds or ("on",)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(device), help="where to train")
    parser.add_argument("--model", default="preact_resnet18", help="backbone for 3x32x32 images")
    parser.add_argument("--images", type=int, default=50_000, help="images in an epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps of the attack")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS)
    parser.add_argument("--engines", nargs="+", choices=ENGINES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS)
    parser.add_argument("--folds", nargs="+", choices=FOLDS, help="encoders folded in the attack; default on")
    parser.add_argument("--no-people", dest="people", action="store_false", help="leave that baseline out")
    parser.add_argument("--workers", type=int, default=4, help="processes of that baseline's DataLoader")
    parser.add_argument("--rounds", type=int, help="timed epochs, of which the median counts; default 3")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help=f"steps before them, at most {WARM_UP}")
    parser.add_argument("--seconds", type=float, default=60.0, help="extrapolate an epoch past this")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="skip cells and rounds left past these seconds"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder with CIFAR-10; without it images are random bytes"
    )
    parser.add_argument("--out", type=Path, help="JSON file; default bench/results/epoch-DEVICE.json")
    parser.add_argument("--traces", action="store_true", help="print the trace of each failure")
    options = parser.parse_args()
    if options.device.type == "cuda" and options.device.index is None:
        options.device = torch.device("cuda", torch.cuda.current_device())
    out = options.out or ROOT / "bench" / "results" / f"epoch-{options.device.type}.json"
    fill_in(options)
    try:
        dataset, data = cifar_like(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kept = ("model", "batch_size", "steps", "rounds", "warm_up", "seconds", "workers")
    report: dict[str, Any] = {
        "what": f"seconds per epoch of PGD-{options.steps} adversarial training, everything included",
        "hardware": hardware(options.device),
        "data": data,
        "settings": {
            "images": len(dataset),
            **{name: getattr(options, name) for name in kept},
            "batch_norm_in_the_attack": "eval",
            "cudnn_benchmark": True,
            "allow_tf32": {
                "cudnn": torch.backends.cudnn.allow_tf32,
                "matmul": torch.backends.cuda.matmul.allow_tf32,
            },
        },
        "gradient_error": gradient_error(dataset, options),
        "best": None,
        "cells": [],
    }
    if not report["gradient_error"] < GRADIENT_ERROR:
        print(
            f"error: ours and the plain code differ: {report['gradient_error']:.3g} of a gradient",
            file=sys.stderr,
        )
        return 1
    # Not before: in float64 trying every algorithm takes longer than the slowest of them.
    torch.backends.cudnn.benchmark = True
    console = Console()
    rows: list[tuple[Cell, Outcome]] = []
    for cell in grid(options):
        late = time.perf_counter() > options.until
        outcome = (
            Outcome("skipped", f"--limit {options.limit:g} s") if late else attempt(cell, dataset, options)
        )
        rows.append((cell, outcome))
        report["cells"].append({**asdict(cell), **asdict(outcome)})
        report["best"] = best(rows)
        write(out, report)
        result = f"{outcome.seconds:.3g} s" if outcome.seconds else f"{outcome.state}: {outcome.reason}"
        print(f"{' '.join(asdict(cell).values())}: {result}", flush=True)
    console.print(table(rows, f"{report['what']}\n{options.model}, {report['hardware']['device']}, {data}"))
    print(f"written to {out}")
    return int(not any(outcome.seconds for _, outcome in rows))


if __name__ == "__main__":
    sys.exit(main())
