"""Kills training processes with SIGKILL and resumes them: at random moments, and before each durable file operation.

A program of its own, because it forks: each training process starts from this one, which has imported everything but
run no backward pass, so that fifty of them cost half a minute. Prints one JSON line for test_kill.py.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than a whole run here
from forked import ended, process
from tiny_runs import assert_same_end, few_digits, tiny

from robustfast.training import fit as fit_module

KILLS = 20


def train(out: Path, epochs: int) -> None:
    """What a user would type next: start the run, or resume it where there is one."""
    if (out / "config.json").exists():
        fit_module.resume(out)
    else:
        fit_module.fit(tiny(epochs=epochs, checkpoint_steps=2, out=out))


def finished(pid: int) -> bool:
    """Wait for a process: True where it came to its end, False where it was killed."""
    code = ended(pid)
    assert code in (0, -signal.SIGKILL), "a training process failed; its trace stands above"
    return code == 0


def kill_at_random(folder: Path) -> int:
    """Kill training after random times until it has been killed often enough; returns how many runs that took."""
    began = time.perf_counter()
    assert not ended(process(lambda: train(folder / "whole", epochs=4)))
    seconds = time.perf_counter() - began
    moments = random.Random(0)
    kills, runs = 0, 0
    while kills < KILLS:
        out = folder / f"run{runs}"
        done = False
        while not done:
            pid = process(lambda out=out: train(out, epochs=4))
            if kills < KILLS:
                # Up to half of a run: most processes get through a part of it only.
                time.sleep(moments.uniform(0, seconds / 2))
                os.kill(pid, signal.SIGKILL)
            done = finished(pid)
            kills += not done
        assert_same_end(out, folder / "whole")
        runs += 1
    return runs


def kill_at_each_durable_operation(folder: Path) -> int:
    """Kill training before its n-th fsync, rename or truncation, for every n; returns how many there are."""

    def train_up_to(number: int, out: Path) -> None:
        made = 0

        def counted(operation: Callable[..., object]) -> Callable[..., object]:
            def run(*args: object) -> object:
                nonlocal made
                made += 1
                if made == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*args)

            return run

        for name in ("fsync", "replace", "truncate"):
            setattr(os, name, counted(getattr(os, name)))
        train(out, epochs=2)

    assert not ended(process(lambda: train(folder / "short", epochs=2)))
    number, done = 0, False
    while not done:
        number += 1
        out = folder / f"operation{number}"
        done = finished(process(lambda out=out, number=number: train_up_to(number, out)))
        if not done:
            assert not ended(process(lambda out=out: train(out, epochs=2)))
        assert_same_end(out, folder / "short")
    return number - 1


def main() -> None:
    folder = Path(sys.argv[1])
    # One thread: forked processes inherit no others, and would wait for them.
    torch.set_num_threads(1)
    fit_module.load = functools.cache(few_digits)
    for split in ("train", "test"):
        fit_module.load("digits", split, fit_module.data_folder(tiny()))
    runs = kill_at_random(folder)
    operations = kill_at_each_durable_operation(folder)
    print(json.dumps({"kills": KILLS, "runs": runs, "operations": operations}))


if __name__ == "__main__":
    main()
