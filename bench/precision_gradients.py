"""The error of one gradient in each precision and layout: `python bench/precision_gradients.py`.

Trains in float32 and now and then computes one step's gradient on the same batch in each variant, from copies of the
weights. "step" is the step as it trains, whose attack runs in the variant too; "pass" is the training pass alone, on
the images that the float32 attack found. The error is relative, ||g - g32|| / ||g32|| over all parameters together.
Beside them: how far the float32 gradients of two draws of the attack's random start are apart.

With `--device cuda` the cases are those of a GPU, and float32 is float32: TF32 is off. A case without its data set is
named with the reason. Which error counts as large is in "allowed"; "largest" and "within" are by variant.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from data_sets import images
from hardware import hardware
from torch import Tensor, nn

import robustfast
from robustfast.attacks import folding
from robustfast.data import Batch, feed, load
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.seeds import derive
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import TrainConfig, to_json
from robustfast.training.engine import Engine
from robustfast.training.fit import data_folder
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import _commit, _hardware, resolve_device
from robustfast.training.schedule import learning_rate

RESULTS = Path(__file__).parent / "results" / "precision-gradients.json"
# Of one gradient in half precision, relative to float32, for the same attacked images.
ALLOWED = 0.2

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32 channels-last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16 channels-last": {"precision": "bf16", "channels_last": True},
    "bf16 channels-last, folded": {"precision": "bf16", "channels_last": True, "fold": "on"},
    "fp16 channels-last": {"precision": "fp16", "channels_last": True},
}

# Preset, fields, and the steps after which to look. ResNets are slow here: a small batch and few steps.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "digits_cnn, AT": ("digits-at", {}, (0, 12, 60, 240, 480)),
    "digits_cnn, AAT++": ("digits-aatpp", {}, (0, 12, 60, 240, 480)),
    "small_cnn, AT": ("mnist-at", {"batch_size": 64}, (0, 20, 100)),
    "preact_resnet18, AT": ("cifar10-prn18-at", {"batch_size": 8}, (0, 10)),
}

# The digits are there on any machine, so that the ResNet is looked at also where CIFAR-10 is not.
GPU_CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "digits_cnn, AAT++": CASES["digits_cnn, AAT++"],
    "preact_resnet18 on digits, AT": ("digits-at", {"model": "preact_resnet18"}, (0, 60, 240)),
    "preact_resnet18 on digits, AAT++": ("digits-aatpp", {"model": "preact_resnet18"}, (0, 60, 240)),
    "preact_resnet18, AT, batch 128": ("cifar10-prn18-at", {"batch_size": 128}, (0, 100, 400)),
    "preact_resnet18, AAT++, batch 128": ("cifar10-prn18-aatpp", {"batch_size": 128}, (0, 100, 400)),
}


def gradient(
    model: ThreeWay, config: TrainConfig, batch: Batch, *, progress: float, x_adv: Any = None
) -> tuple[Tensor, Any]:
    """One step's gradient as a vector in float64, and the attacked images; `model` stays as it is.

    Args:
        model: in float32, in any layout, on any device.
        config: precision and layout.
        batch: in float32.
        progress: share of the training that is done.
        x_adv: attacked images to take; None attacks.
    """
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    own = copy.deepcopy(model).to(memory_format=layout)
    # Launched one by one: a graph would be captured for each of these copies.
    objective = OBJECTIVES[config.method](
        own, config.objective, config.attack, seed=config.seed, engine="eager"
    )
    objective.begin(0, progress)
    attack, found = objective.attack, x_adv

    def attacked(*args: Any, **keywords: Any) -> Any:
        nonlocal found
        found = attack(*args, **keywords) if x_adv is None else x_adv
        return found

    objective.attack = attacked
    engine = Engine(objective, config, batch.x.device)
    for scale in engine.scales.values():
        if scale is not None:
            scale.value.fill_(128.0)  # where a run's scale settles; the first ones overflow
    torch.manual_seed(0)  # dropout
    with folding(config.fold):
        engine.step(batch._replace(x=batch.x.contiguous(memory_format=layout)), lr=0.0)
    gradients = chain.from_iterable(updater.gradients for updater in engine.updaters.values())
    return torch.cat([g.contiguous().flatten().double() for g in gradients]), found


def error(one: Tensor, other: Tensor) -> float:
    """Relative distance of a gradient from the one that is right."""
    return float((one - other).norm() / other.norm())


def train(
    config: TrainConfig,
    stops: tuple[int, ...],
    look: Callable[[ThreeWay, Batch, int, float], None],
    device: torch.device,
) -> None:
    """Train in float32 up to the last of `stops`, and call `look(model, next batch, step, progress)` at each."""
    torch.manual_seed(derive(config.seed, "weights"))
    training = load(config.dataset, "train", data_folder(config))
    model = ThreeWay(config.model, num_classes=training.num_classes, in_channels=training.channels)
    model.to(device)
    objective = OBJECTIVES[config.method](model, config.objective, config.attack, seed=config.seed)
    engine = Engine(objective, config, device)
    source = feed(
        training, config.batch_size, seed=config.seed, augment=config.augment, device=device, say=None
    )
    batches, steps = chain.from_iterable(map(source.batches, range(config.epochs))), len(source)
    for number, batch in enumerate(batches):
        progress = number / (config.epochs * steps)
        if number in stops:
            look(model, batch, number, progress)
        if number >= max(stops):
            break
        objective.begin(number // steps, progress)
        engine.step(batch, lr=learning_rate(config, number, steps))
    else:
        look(model, batch, number + 1, 1.0)
    source.close()


def measure(
    name: str, config: TrainConfig, stops: tuple[int, ...], device: torch.device
) -> list[dict[str, Any]]:
    """The rows of one case: errors of each variant at each stop."""
    rows = []

    def look(model: nn.Module, batch: Batch, step: int, progress: float) -> None:
        right, x_adv = gradient(model, config, batch, progress=progress)
        row: dict[str, Any] = {"case": name, "steps": step, "step": {}, "pass": {}}
        # Attacks draw from the seed, and the weights are given.
        elsewhere, _ = gradient(model, replace(config, seed=config.seed + 1), batch, progress=progress)
        row["another random start"] = error(elsewhere, right)
        for variant, changed in VARIANTS.items():
            other = replace(config, **changed)
            row["step"][variant] = error(gradient(model, other, batch, progress=progress)[0], right)
            mine = gradient(model, other, batch, progress=progress, x_adv=x_adv)[0]
            row["pass"][variant] = error(mine, right)
        rows.append(row)
        shown = ", ".join(f"{v} {row['step'][v]:.2g} ({row['pass'][v]:.2g})" for v in VARIANTS)
        start = row["another random start"]
        print(f"{name} after {step} steps: {shown}; another start: {start:.2g}", flush=True)

    train(config, stops, look, device)
    return rows


def largest(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Variant -> its largest errors, of the step and of the pass alone."""
    return {
        variant: {kind: max(row[kind][variant] for row in rows) for kind in ("step", "pass")}
        for variant in VARIANTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = CASES | GPU_CASES
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="the JSON; without it precision-gradients[-cuda].json")
    parser.add_argument("--cases", nargs="+", choices=list(known), help="default: those of the device")
    parser.add_argument("--stops", nargs="+", type=int, help="steps to look at, instead of the cases' own")
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    gpu = device.type == "cuda"
    names = arguments.cases or list(GPU_CASES if gpu else CASES)
    out = arguments.out or (RESULTS.with_name("precision-gradients-cuda.json") if gpu else RESULTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("ROBUSTFAST_BENCH_THREADS", "1")))
    # The reference is float32, and not what a GPU takes for it by default.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[dict[str, Any]] = []
    done: dict[str, Any] = {}
    not_run: dict[str, str] = {}
    for name in names:
        preset, fields, stops = known[name]
        # What the others are held against runs every layer by itself, also on a GPU.
        config = replace(PRESETS[preset], **{"fold": "off", **fields})
        folder, named = images(config, arguments.data_dir, out.with_name(f"{out.stem}-runs"))
        if folder is None:
            not_run[name] = named
            print(f"{name}: not run: {named}", flush=True)
        else:
            done[name] = to_json(config) | {"data": named}
            config = replace(config, data_dir=folder)
            rows += measure(name, config, tuple(arguments.stops or stops), device)
        # After each case: what a run cut short has measured stays.
        worst = largest(rows) if rows else {}
        result = {
            "command": "python bench/precision_gradients.py",
            "robustfast": robustfast.__version__,
            "commit": _commit(),
            "hardware": hardware(device) if gpu else _hardware() | {"system": platform.system()},
            "configs": done,
            "rows": rows,
            "not_run": not_run,
            "allowed": ALLOWED,
            "largest": worst,
            "within": {variant: errors["pass"] < ALLOWED for variant, errors in worst.items()},
        }
        text = json.dumps(result, indent=1) + "\n"
        write_durably(out, lambda file, text=text: file.write(text.encode()))


if __name__ == "__main__":
    main()
