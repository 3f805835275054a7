"""Means over an epoch, and a metrics file that loses and doubles no line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.training.metrics import Meter, MetricsFile
from robustfast.training.terms import Terms


def test_means_are_weighted_by_images() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 30)
    meter.add({"a": torch.tensor(4.0), "b": torch.tensor(0.5)}, 10)
    assert meter.means() == {"a": 1.75, "b": 0.125}
    other = Meter()
    other.load_state_dict(meter.state_dict(), torch.device("cpu"))
    other.add({"a": torch.tensor(0.0), "b": torch.tensor(0.0)}, 40)
    assert other.means() == {"a": 0.875, "b": 0.0625}
    assert meter.images == 40


def test_terms_in_one_tensor_are_counted_in_one_launch() -> None:
    class Launches(TorchDispatchMode):
        names: list[str]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    meter, terms = Meter(), Terms(("a", "b", "c"), torch.tensor([1.0, 2.0, 3.0]))
    meter.add(terms, 8)
    launches = Launches()
    launches.names = []
    with launches:
        meter.add(terms, 8)
    assert launches.names == ["add.Tensor"]
    assert meter.means() == {"a": 1.0, "b": 2.0, "c": 3.0}


def test_a_copy_of_a_meter_stays_as_it_was() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0)}, 3)
    before = meter.copy()
    meter.add({"a": torch.tensor(torch.nan)}, 3)
    assert before.means() == {"a": 1.0}
    assert before.images == 3


def test_sums_are_float64_and_terms_may_come_and_go() -> None:
    meter = Meter()
    for _ in range(3):
        meter.add({"a": torch.tensor(0.1), "b": torch.tensor(1.0)}, 1)
    meter.add({"b": torch.tensor(1.0), "c": torch.tensor(4.0)}, 1)
    assert meter.means() == {"a": 3 * float(torch.tensor(0.1)) / 4, "b": 1.0, "c": 1.0}
    sums = meter.state_dict()["sums"]
    assert list(sums) == ["a", "b", "c"]
    assert all(
        value.dtype == torch.float64 and value.untyped_storage().nbytes() == 8 for value in sums.values()
    )


def test_a_meter_that_has_counted_nothing() -> None:
    meter = Meter()
    again = Meter()
    again.load_state_dict(meter.state_dict(), torch.device("cpu"))
    assert meter.means() == again.means() == again.over(World()).means() == {}


def test_rewind_drops_what_no_checkpoint_counted(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"epoch": 1})
    counted = file.bytes
    file.append({"epoch": 2})
    again = MetricsFile(file.path)
    again.rewind(counted)
    again.append({"epoch": 2, "again": True})
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == [
        {"epoch": 1},
        {"epoch": 2, "again": True},
    ]
    assert again.bytes == file.path.stat().st_size


def test_rewind_of_a_new_run_needs_no_file(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.jsonl").rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_unwritable_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl: Is a directory"):
        MetricsFile(tmp_path / "metrics.jsonl").append({})
