"""What the tests of the loaders share: a small data set of random pixels, and epochs joined into one tensor each."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustfast.data import Batch, Dataset, Feed, feed
from robustfast.data.dali import missing

HAS_PILLOW = importlib.util.find_spec("PIL") is not None
needs_dali = pytest.mark.skipif(missing() is not None, reason=missing() or "")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
LOADERS = ["resident", pytest.param("dali", marks=needs_dali), "torch"]


def toy(
    samples: int = 37,
    channels: int = 3,
    height: int = 7,
    width: int = 9,
    scale: float = 255.0,
    **fields: Any,
) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        name="toy",
        images=torch.randint(
            0, int(scale) + 1, (samples, channels, height, width), generator=generator, dtype=torch.uint8
        ),
        labels=torch.arange(samples) % 3,
        classes=("a", "b", "c"),
        scale=scale,
        **fields,
    )


def epoch_of(source: Feed, epoch: int, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, y, index of the whole epoch, the batches joined."""
    x, y, index, _ = zip(*source.batches(epoch, start), strict=True)
    return torch.cat(x), torch.cat(y), torch.cat(index)


def batches_of(loader: str, *arguments: Any, epoch: int = 0, start: int = 0, **options: Any) -> list[Batch]:
    return list(feed(*arguments, loader=loader, **options).batches(epoch, start))


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    """The same batches to the bit, in the same layout."""
    assert len(batches) == len(expected)
    for one, other in zip(batches, expected, strict=True):
        assert one.share == other.share
        for name in ("x", "y", "index"):
            found, wanted = getattr(one, name), getattr(other, name)
            assert torch.equal(found, wanted), name
            assert found.stride() == wanted.stride(), name


def becomes(condition: Callable[[], bool]) -> bool:
    """Whether it holds, soon: what ends a thread or process returns before the system has taken it off its list."""
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.02)
    return False


def threads() -> int:
    """Threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def children() -> set[int]:
    """Processes that this one started and that have not ended."""
    own = os.getpid()
    return {int(child) for child in Path(f"/proc/{own}/task/{own}/children").read_text().split()}
