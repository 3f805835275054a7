"""Stops training processes inside an epoch, by SIGKILL and by SIGTERM, with each loader, average and optimizer.

A program of its own, because it forks: see kill_and_resume.py. Its arguments are a folder and the names of `KINDS`.
Prints what came out as one JSON line for test_resume.py.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than a whole run here
import torch.nn.functional as F
from forked import ended, process
from tiny_runs import assert_same_end, few_digits, tiny
from torch import Tensor, nn

from robustfast.command_line import main_wrapper
from robustfast.data import Dataset
from robustfast.objectives import OBJECTIVES, Objective, Phase
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.config import TrainConfig
from robustfast.training.engine import Engine


class TwoOptimizers(Objective):
    """The robust way and the non-robust one, each with an optimizer of its own."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    main_ways = "rn"

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {way: list(self.model.way(way).parameters()) for way in "rn"}

    def optimizers(self) -> dict[str, dict[str, Any]]:
        return {"r": {"optimizer": "adamw", "lr": 0.1}}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        for way in "rn":
            loss = F.cross_entropy(self.model.way(way)(x), y)
            yield Phase(way, loss, {way: loss.detach()})


KINDS: dict[str, dict[str, Any]] = {
    "resident": {"loader": "resident", "augment": True},
    "torch": {"loader": "torch", "augment": True},
    "dali": {"loader": "dali", "augment": True},
    "ema": {"average": "ema", "ema_decay": 0.9},
    "swa": {"average": "swa", "swa_start": 0.4},
    "two": {"method": "two_optimizers", "objective": TwoOptimizers.Config()},
    "rfd": {"preset": "digits-rfd"},
    "accumulated": {
        "accumulate": 2,
        "clip_norm": 1.0,
        "optimizer": "adamw",
        "schedule": "cosine",
        "warmup": 0.5,
    },
}
"""What is trained: fields on top of `tiny`."""

STOP = 5
"""Steps before the signal: two of the second epoch's three, of two epochs."""


def digits_as_photographs(name: str, split: str, *args: Any, **options: Any) -> Dataset:
    """`few_digits`, whose mirror images are taken for digits, so that crops and flips are drawn."""
    return replace(few_digits(name, split, *args, **options), augmentable=True)


def train(config: TrainConfig) -> int:
    """What a user would type next; the exit code of the command line."""
    run = config.out
    assert run is not None

    def main(argv: object) -> None:
        if (run / "config.json").exists():
            fit_module.resume(run)
        else:
            fit_module.fit(config)

    return main_wrapper(main, [])


def train_up_to(config: TrainConfig, number: signal.Signals) -> int:
    """Train, and get a signal from the system in the middle of a step."""
    step, made = Engine.step, 0

    def counted(self: Engine, *args: Any, **keywords: Any) -> Any:
        nonlocal made
        made += 1
        if made == STOP:
            os.kill(os.getpid(), number)
        return step(self, *args, **keywords)

    Engine.step = counted
    return train(config)


def stop_and_resume(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Train a run as a whole, one that is killed and one that is asked to stop; both must end like the first."""
    config = tiny(**fields)
    whole = replace(config, out=folder / "whole")
    assert ended(process(lambda: train(whole))) == 0

    # Killed inside step 5, it goes on after step 4.
    killed = replace(config, out=folder / "killed", checkpoint_steps=2)
    assert ended(process(lambda: train_up_to(killed, signal.SIGKILL))) == -signal.SIGKILL
    left = position(killed)
    assert ended(process(lambda: train(killed))) == 0
    assert_same_end(killed.out, whole.out)

    # Asked to stop inside step 5, it finishes that step and goes on after it.
    asked = replace(config, out=folder / "asked")
    with (folder / "stderr").open("wb") as err:
        code = ended(process(lambda: train_up_to(asked, signal.SIGTERM), err=err.fileno()))
    found = position(asked)
    assert ended(process(lambda: train(asked))) == 0
    assert_same_end(asked.out, whole.out)
    return {"killed": left, "asked": found, "code": code, "said": (folder / "stderr").read_text()}


def position(config: TrainConfig) -> list[int]:
    """Finished epochs, and steps after them, of a run's newest checkpoint."""
    found = checkpoint.load_newest(config.out / "checkpoints")
    assert found is not None
    return [found[0]["epoch"], found[0]["step"]]


def main() -> None:
    OBJECTIVES["two_optimizers"] = TwoOptimizers
    # One thread: forked processes inherit no others, and would wait for them.
    torch.set_num_threads(1)
    fit_module.load = functools.cache(digits_as_photographs)
    for split in ("train", "test"):
        fit_module.load("digits", split, fit_module.data_folder(tiny()), image_size=None)
    results = {}
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        results[name] = stop_and_resume(folder, KINDS[name])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
