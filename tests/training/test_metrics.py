"""Means over an epoch, and a metrics file that loses and doubles no line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robustfast.errors import UserError
from robustfast.training.metrics import Meter, MetricsFile


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
