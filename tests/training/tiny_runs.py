"""Tiny runs, and what it means that two of them are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustfast.data import Dataset, load
from robustfast.training import checkpoint
from robustfast.training.config import TrainConfig
from robustfast.training.held_out import spread
from robustfast.training.metrics import TIMINGS
from robustfast.training.presets import PRESETS


def few_digits(
    name: str, split: str, data_dir: Path | None = None, *, image_size: int | None = None
) -> Dataset:
    """In place of `load`: 96 of the real digits, held-out ones 40."""
    return spread(load(name, split, data_dir, image_size=image_size), 96 if split == "train" else 40)


def tiny(preset: str = "digits-aatpp", **fields: Any) -> TrainConfig:
    """A preset cut to batches of 32 (3 steps an epoch of `few_digits`), one attack step, a check after each epoch."""
    config = PRESETS[preset]
    small = {
        "epochs": 2,
        "batch_size": 32,
        "attack": replace(config.attack, steps=1),
        "validate_every": 1,
        "validate_images": 40,
        "tensorboard": False,
        "device": "cpu",
    }
    return replace(config, **(small | fields))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics lines without the fields that measure time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(TIMINGS - {"check_seconds"} <= set(line) for line in lines)
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def assert_same_end(run: Path, other: Path) -> None:
    """Both runs ended with the same bits: weights, buffers, optimizers, generators, metrics, best epoch."""
    assert metrics(run) == metrics(other)
    for name in ("last.pt", "best.pt"):
        mine, theirs = (checkpoint.load(folder / "checkpoints" / name) for folder in (run, other))
        # The bytes of metrics.jsonl count the digits of its timings.
        mine.pop("metrics_bytes", None)
        theirs.pop("metrics_bytes", None)
        assert_equal(mine, theirs, name)


def assert_equal(mine: Any, theirs: Any, where: str) -> None:
    assert type(mine) is type(theirs), where
    if isinstance(mine, dict):
        assert list(mine) == list(theirs), where
        for key in mine:
            assert_equal(mine[key], theirs[key], f"{where}/{key}")
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for position, (left, right) in enumerate(zip(mine, theirs, strict=True)):
            assert_equal(left, right, f"{where}/{position}")
    elif isinstance(mine, Tensor):
        assert mine.dtype == theirs.dtype, where
        assert torch.equal(mine, theirs), where
    else:
        assert mine == theirs, where
