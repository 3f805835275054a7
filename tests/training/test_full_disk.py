"""A disk that is full, for real: what was checkpointed stays whole, one line says it, and the run goes on then."""

from __future__ import annotations

import os
import resource
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_end, few_digits, metrics, tiny

from robustfast.errors import UserError
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.board import Board
from robustfast.training.fit import fit, resume
from robustfast.training.metrics import MetricsFile
from robustfast.training.trainer import Trainer

FULL = "No space left on device"


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a file system; the tests with a limit on file sizes run everywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no free page."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            # Without a buffer: a write that fails has written nothing.
            with pytest.raises(OSError, match=FULL):
                deque(iter(lambda: file.write(b"\1" * size), 0), maxlen=0)  # noqa: B023


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def after_the_first_epoch(monkeypatch: pytest.MonkeyPatch, job: Callable[[], object]) -> None:
    """Do something when the second epoch has been trained and nothing of it is written yet."""
    end_epoch = Trainer._end_epoch

    def ended(self: Trainer, *args: Any) -> None:
        if self.epoch == 1:
            job()
        end_epoch(self, *args)

    monkeypatch.setattr(Trainer, "_end_epoch", ended)


@pytest.mark.parametrize("tensorboard", [False, True])
def test_the_disk_is_full_in_the_second_epoch(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensorboard: bool
) -> None:
    config = tiny("digits-st", out=disk / "run", tensorboard=tensorboard)
    # The first one that does not fit: the line of metrics does, into what is left of its page.
    what = r"tensorboard/events\S+" if tensorboard else r"checkpoints/(best|last)\.pt"
    with monkeypatch.context() as patch:
        after_the_first_epoch(patch, lambda: fill(disk))
        with pytest.raises(UserError, match=rf"^cannot write {disk}/run/{what}: {FULL}; ") as caught:
            fit(config)
    assert "\n" not in str(caught.value)
    found = checkpoint.load_newest(disk / "run" / "checkpoints", say=pytest.fail)
    assert found is not None
    assert (found[0]["epoch"], found[1].name) == (1, "last.pt")
    # While there is no room, resuming ends in the same line and spoils as little.
    with pytest.raises(UserError, match=FULL):
        resume(disk / "run")
    (disk / "filler").unlink()
    whole = fit(tiny("digits-st", out=tmp_path / "whole"))
    assert_same_end(resume(disk / "run"), whole)


def test_a_new_run_on_a_full_disk(disk: Path) -> None:
    (disk / "run").mkdir()
    fill(disk)
    with pytest.raises(UserError, match=rf"cannot write {disk}/run/(lock|config\.json): {FULL}") as caught:
        fit(tiny("digits-st", out=disk / "run"))
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    fit(tiny("digits-st", out=disk / "run", epochs=1))


def test_metrics_on_a_full_disk_lose_no_line(disk: Path) -> None:
    file = MetricsFile(disk / "metrics.jsonl")
    file.append({"epoch": 1})
    counted = file.bytes
    fill(disk)
    with pytest.raises(UserError, match=rf"cannot write {disk}/metrics\.jsonl: {FULL}"):
        file.append({"epoch": 2, "long": "x" * 8192})
    (disk / "filler").unlink()
    again = MetricsFile(file.path)
    again.rewind(counted)
    again.append({"epoch": 2})
    assert file.path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_events_on_a_full_disk_are_one_line(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    board = Board(disk / "tensorboard", 0)
    board.scalars(1, {"loss": 1.0})
    fill(disk)
    for _ in range(2):  # nothing waits for a thread that has ended
        with pytest.raises(UserError, match=rf"cannot write {disk}/tensorboard/events\S+: {FULL}"):
            board.images(1, {"noise": torch.rand(4, 3, 64, 64)})
    with pytest.raises(UserError, match=FULL):
        Board(disk / "other", 0)
    assert capfd.readouterr() == ("", "")


def test_a_limit_on_file_sizes_is_told_like_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be mounted: another fault that the system makes, in the same place."""
    whole = fit(tiny("digits-st", out=tmp_path / "whole"))
    size = (whole / "checkpoints" / "last.pt").stat().st_size
    config = tiny("digits-st", out=tmp_path / "run")
    with monkeypatch.context() as patch:
        limit = files_up_to(size // 2)
        after_the_first_epoch(patch, limit.__enter__)
        try:
            with pytest.raises(
                UserError, match=r"cannot write .*/(best|last)\.pt: File too large; "
            ) as caught:
                fit(config)
        finally:
            limit.__exit__(None, None, None)
    assert "\n" not in str(caught.value)
    assert "last.pt.partial" not in os.listdir(config.out / "checkpoints")
    found = checkpoint.load_newest(config.out / "checkpoints", say=pytest.fail)
    assert found is not None
    assert found[0]["epoch"] == 1
    assert len(metrics(resume(config.out))) == 2
    assert_same_end(config.out, whole)
