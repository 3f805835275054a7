"""Seconds per epoch of AFD and RFD beside adversarial training on the same network: `python bench/games.py`.

Every preset trains on images of random bytes in its data set's size, through the loader, the engine and the optimizers
of `robustfast.train`: no accuracy is claimed, and none would come of them. A few steps warm up; an epoch is the median
of the steps after them times the steps of the whole training split, with the attack at its full strength. A preset is
written as soon as it is measured, and one that cannot run keeps its reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from hardware import ROOT, hardware
from measure import clock
from rich.console import Console
from rich.table import Table

from robustfast.data import Batch, Dataset, feed
from robustfast.models import network
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.training.checkpoint import write_durably
from robustfast.training.config import to_json
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import resolve_device
from robustfast.training.threads import cpu_threads

# The first of each group is what the others are compared with.
GROUPS = {
    "cuda": (
        ("cifar10-rn18-afd-at", "cifar10-rn18-afd-wgan", "cifar10-rn18-afd-dcgan"),
        ("cifar10-rfd-at", "cifar10-rfd"),
    ),
    "cpu": (("digits-afd-at", "digits-afd-wgan", "digits-afd-dcgan"), ("digits-rfd-at", "digits-rfd")),
}
# Channels, side, classes and training images.
SHAPES = {"cifar10": (3, 32, 10, 50_000), "digits": (1, 8, 10, 1_438)}
WARM_UP = 3


class Training:
    """A preset's training, step by step, on images that never end."""

    def __init__(self, preset: str, device: torch.device, precision: str, channels_last: bool) -> None:
        config = replace(lookup("preset", PRESETS, preset), precision=precision, channels_last=channels_last)
        channels, side, classes, self.images = SHAPES[config.dataset]
        torch.manual_seed(0)
        model = network(config.network, config.model, num_classes=classes, in_channels=channels).to(device)
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self.config, self.device = config, device
        self.objective = OBJECTIVES[config.method](
            model, config.objective, config.attack, seed=0, engine=config.attack_engine
        )
        self.engine = Engine(self.objective, config, device)
        self.batches = self._batches(channels, side, classes)

    def _batches(self, channels: int, side: int, classes: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        count = 8 * self.config.batch_size
        pixels = torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, classes, (count,), generator=generator)
        source = feed(
            Dataset("random", pixels, labels, tuple(map(str, range(classes)))),
            self.config.batch_size,
            seed=0,
            device=self.device,
            loader="resident",
            augment=self.config.augment,
            channels_last=self.config.channels_last,
            say=None,
        )
        return chain.from_iterable(source.batches(0) for _ in repeat(None))

    def step(self) -> None:
        # The attack at its full strength, whatever the ramp.
        self.objective.begin(0, 1.0)
        # A rate at which random images do no harm.
        self.engine.step(next(self.batches), lr=1e-3)

    def seconds(self) -> float:
        start = clock()
        self.step()
        return clock() - start


def measured(preset: str, group: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    training = Training(preset, device, options.precision, options.channels_last)
    with cpu_threads(training.config.threads):
        for _ in range(WARM_UP):
            training.step()
        samples = [training.seconds() for _ in range(options.steps)]
    steps = -(-training.images // training.config.batch_size)
    return {
        "preset": preset,
        "beside": group,
        "step_seconds": samples,
        "steps_in_epoch": steps,
        "epoch_seconds": statistics.median(samples) * steps,
        "config": to_json(training.config),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON file; without it games-DEVICE.json in bench/results")
    options = parser.parse_args()
    device = resolve_device(options.device)
    out = options.out or ROOT / "bench" / "results" / f"games-{device.type}.json"
    report: dict[str, Any] = {"hardware": hardware(device), "rows": []}
    table = Table("preset", "s/epoch", "of AT", title=f"training on {device.type}")
    for group in GROUPS[device.type]:
        base = None
        for preset in group:
            try:
                row = measured(preset, group[0], device, options)
            except (RuntimeError, ValueError) as error:  # out of memory too: the others are still wanted
                row = {"preset": preset, "beside": group[0], "reason": str(error).splitlines()[0]}
            report["rows"].append(row)
            text = json.dumps(report, indent=1) + "\n"
            out.parent.mkdir(parents=True, exist_ok=True)
            write_durably(out, lambda file, text=text: file.write(text.encode()))
            seconds = row.get("epoch_seconds")
            base = base or seconds
            shown = (f"{seconds:.2f}", f"{seconds / base:.2f}") if seconds and base else (row["reason"], "-")
            table.add_row(preset, *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
