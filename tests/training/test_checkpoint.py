"""Checkpoints: whole at every moment, and loaded without running anything."""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from tiny_runs import assert_equal, few_digits, metrics, tiny

from robustfast.errors import UserError
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.engine import Engine
from robustfast.training.fit import fit, resume


def state(value: int) -> dict[str, Any]:
    return {"value": value, "weights": torch.full((1000,), float(value)), "nested": {"names": ["a", "b"]}}


class CrashError(Exception):
    """Stands for the machine stopping: nothing after it runs."""


def crash_after(patch: pytest.MonkeyPatch, number: int) -> None:
    """Let this many operations, fsyncs and renames, be done and no more."""
    calls = 0

    def stop(operation: Any) -> Any:
        def guarded(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > number:
                raise CrashError
            return operation(*args)

        return guarded

    patch.setattr(os, "fsync", stop(os.fsync))
    patch.setattr(os, "replace", stop(os.replace))


def test_save_and_load(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert loaded["value"] == 1
    assert loaded["nested"] == {"names": ["a", "b"]}
    assert torch.equal(loaded["weights"], torch.full((1000,), 1.0))


def test_keeps_previous(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        checkpoint.save(state(value), tmp_path / "last.pt", keep_previous=True)
    assert checkpoint.load(tmp_path / "last.pt")["value"] == 3
    assert checkpoint.load(tmp_path / "previous.pt")["value"] == 2
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


def test_crash_at_every_durable_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop before the n-th fsync or rename of the second save, for every n: the newest whole state is always found."""
    crashes = 0
    for moment in range(10):
        folder = tmp_path / str(moment)
        folder.mkdir()
        checkpoint.save(state(1), folder / "last.pt", keep_previous=True)
        with monkeypatch.context() as patch:
            crash_after(patch, moment)
            try:
                checkpoint.save(state(2), folder / "last.pt", keep_previous=True)
            except CrashError:
                crashes += 1
            else:
                break
        found = checkpoint.load_newest(folder)
        assert found is not None
        assert found[0]["value"] in (1, 2)
        # What a crash leaves behind does not stand in the way of the next save.
        checkpoint.save(state(3), folder / "last.pt", keep_previous=True)
        assert checkpoint.load(folder / "last.pt")["value"] == 3
        assert "last.pt.partial" not in os.listdir(folder)
    assert crashes == 4  # the data's fsync, two renames, the folder's fsync


def test_crash_at_every_durable_operation_after_a_broken_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from previous.pt, a run leaves that one alone until there is a whole last.pt again."""
    monkeypatch.setattr(fit_module, "load", few_digits)
    config = tiny("digits-st", out=tmp_path / "run", checkpoint_steps=1, validate_every=0)
    whole = fit(replace(config, out=tmp_path / "whole"))
    step = Engine.step

    def last_one(self: Engine, *args: Any, **keywords: Any) -> Any:
        if self.objective.progress == 4 / 6:
            raise CrashError
        return step(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", last_one)
        with pytest.raises(CrashError):
            fit(config)
    (config.out / "checkpoints" / "last.pt").write_bytes(b"not a checkpoint")

    crashes = 0
    for moment in range(20):
        run = tmp_path / str(moment)
        shutil.copytree(config.out, run)
        with monkeypatch.context() as patch:
            crash_after(patch, moment)
            try:
                resume(run)
            except CrashError:
                crashes += 1
            else:
                break
        found = checkpoint.load_newest(run / "checkpoints")
        assert found is not None
        assert (found[0]["epoch"], found[0]["step"]) >= (1, 0)
        assert metrics(resume(run)) == metrics(whole)
        ends = [checkpoint.load(path / "checkpoints" / "last.pt")["model"] for path in (run, whole)]
        assert_equal(*ends, "weights")
    # A save in the broken one's place, one that keeps the one before, a line of metrics, and another save.
    assert crashes == 3 + 4 + 1 + 4
    kept = checkpoint.load(run / "checkpoints" / "previous.pt")
    assert (kept["epoch"], kept["step"]) == (1, 2)


def test_content_is_durable_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (log.append(Path(b).name), real_replace(a, b)))
    checkpoint.save(state(1), tmp_path / "last.pt")
    assert log == ["fsync", "last.pt", "fsync"]


def test_full_disk_is_one_line_and_keeps_the_old(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(state(1), path)

    def fill(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"last\.pt: No space left on device; .*make room") as raised:
        checkpoint.write_durably(path, fill)
    assert "\n" not in str(raised.value)
    assert checkpoint.load(path)["value"] == 1
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "garbage"])
def test_damaged_newest_falls_back_and_says_so(tmp_path: Path, damage: str) -> None:
    for value in (1, 2):
        checkpoint.save(state(value), tmp_path / "last.pt", keep_previous=True)
    content = bytearray((tmp_path / "last.pt").read_bytes())
    position = content.index(torch.full((4,), 2.0).numpy().tobytes())
    content[position + 2] ^= 1
    damaged = {
        "truncated": content[: len(content) // 2],
        "flipped": content,
        "empty": b"",
        "garbage": bytes(range(256)) * 64,
    }[damage]
    (tmp_path / "last.pt").write_bytes(damaged)

    said: list[str] = []
    found = checkpoint.load_newest(tmp_path, say=said.append)
    assert found is not None
    assert found[0]["value"] == 1
    assert found[1] == tmp_path / "previous.pt"
    assert len(said) == 1
    assert "last.pt is no readable checkpoint" in said[0]
    assert "previous.pt" in said[0]


def test_all_damaged_is_an_error_none_is_none(tmp_path: Path) -> None:
    assert checkpoint.load_newest(tmp_path) is None
    (tmp_path / "last.pt").write_bytes(b"x")
    (tmp_path / "previous.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"last\.pt is no readable .*previous\.pt is no readable") as caught:
        checkpoint.load_newest(tmp_path)
    assert "\n" not in str(caught.value)


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("form", ["of torch", "of torch before 1.6", "plain"])
def test_runs_no_code(tmp_path: Path, form: str) -> None:
    bomb = {"weights": Bomb(str(tmp_path / "boom"))}
    if form == "plain":
        (tmp_path / "last.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb, tmp_path / "last.pt", _use_new_zipfile_serialization=form == "of torch")
    with pytest.raises(UserError, match=r"last\.pt is no readable checkpoint: ") as caught:
        checkpoint.load(tmp_path / "last.pt")
    message = str(caught.value)
    assert "\n" not in message
    # torch's own words advise to execute the file.
    assert "weights_only" not in message
    assert ("it holds more than tensors and plain values, and is not executed" in message) == (
        form == "of torch"
    )
    # An older checkpoint that is whole is used instead, as for any other that cannot be read.
    checkpoint.save(state(1), tmp_path / "previous.pt")
    found = checkpoint.load_newest(tmp_path, say=lambda text: None)
    assert found is not None
    assert found[0]["value"] == 1
    assert not (tmp_path / "boom").exists()
