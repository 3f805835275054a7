"""Trains 2,304 steps with checks, checkpoints, metrics and events between them, and prints the memory held on the way.

A program of its own: in a process that has run other tests, freed memory would hide what is leaked. Its argument is a
folder; it prints one JSON line, [step, bytes resident, Python objects] after every fourth epoch of 96 steps.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import few_digits, tiny

from robustfast.objectives import OBJECTIVES
from robustfast.training import fit as fit_module
from robustfast.training.trainer import Trainer

EPOCHS = 24


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    torch.set_num_threads(1)
    fit_module.load = functools.cache(few_digits)
    end_epoch = Trainer._end_epoch
    seen: list[list[int]] = []

    def measured(self: Trainer, *args: Any) -> None:
        end_epoch(self, *args)
        if self.epoch % 4 == 0:
            gc.collect()
            seen.append([self.epoch * len(self.feed), resident(), len(gc.get_objects())])

    Trainer._end_epoch = measured
    fit_module.fit(
        tiny(
            "digits-at",
            objective=OBJECTIVES["at"].Config(),
            epochs=EPOCHS,
            batch_size=1,
            validate_every=4,
            validate_images=8,
            checkpoint_steps=40,
            average="ema",
            tensorboard=True,
            out=Path(sys.argv[1]) / "run",
        )
    )
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
