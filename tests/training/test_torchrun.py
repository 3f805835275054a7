"""The commands under torchrun, in two processes: one writes, a killed one is replaced, the numbers are those of one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import assert_same_end, metrics, tiny

from robustfast import evaluate
from robustfast.command_line import main_wrapper
from robustfast.errors import UserError
from robustfast.evaluation.aat import CUSTOM
from robustfast.training.fit import fit
from robustfast.training.run_folder import RunFolder

Torchrun = Callable[..., subprocess.CompletedProcess[str]]

EPOCHS, STEPS = 2, 12
TRAIN = [
    "digits-aatpp", "--objective.terms", "st,ar", "--attack.steps", "1", "--batch-norm", "sync", "--device", "cpu",
    "--epochs", f"{EPOCHS}", "--batch-size", "120", "--checkpoint-steps", "5", "--no-evaluate",
]  # fmt: skip
EVALUATE = ["--device", "cpu", "--images", "250", "--batch-size", "60", "--attack.steps", "2"]


@pytest.fixture(scope="module")
def run(torchrun: Torchrun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two processes, and what they printed; made once, also where several workers share these tests."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    path, printed = base / "torchrun" / "two", base / "torchrun.txt"
    with (base / "torchrun.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(torchrun(2, "-m", "robustfast.train", *TRAIN, "--out", path).stdout)
    return path, printed.read_text()


def test_one_process_writes(run: tuple[Path, str]) -> None:
    path, printed = run
    assert {entry.name for entry in path.parent.iterdir()} == {path.name}
    assert len(list(path.rglob("events.out.tfevents.*"))) == 1
    assert [line["step"] for line in metrics(path)] == [STEPS * (epoch + 1) for epoch in range(EPOCHS)]
    for sentence in ("training digits-aatpp into", f"epoch {EPOCHS}/{EPOCHS}", "run folder: "):
        assert printed.count(sentence) == 1
    assert "on cpu, 2 processes" in printed


def test_a_run_of_two_processes_is_that_of_one(run: tuple[Path, str], tmp_path: Path) -> None:
    folder = RunFolder.open(run[0])
    assert folder.config.batch_norm == "sync"
    alone = fit(replace(folder.config, epochs=EPOCHS, out=tmp_path / "one", tensorboard=False))
    for mine, theirs in zip(metrics(alone), metrics(run[0]), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert list(theirs["terms"]) == list(mine["terms"])


def test_two_processes_evaluate_to_the_same_bytes(
    torchrun: Torchrun, run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run[0]
    printed = torchrun(2, "-m", "robustfast.evaluate", path, *EVALUATE).stdout
    both = (path / CUSTOM).read_bytes()
    (path / CUSTOM).unlink()
    assert main_wrapper(evaluate.main, [str(path), *EVALUATE]) == 0
    assert (path / CUSTOM).read_bytes() == both
    assert json.loads(both)["images"] == 250
    assert printed == capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes to kill in /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_costs_the_steps_since_the_newest_checkpoint(
    rank: int, run: tuple[Path, str], tmp_path: Path
) -> None:
    """One of two processes killed, the one that writes or the other: torchrun starts both again, and the run ends with
    the bits of one never stopped."""
    path = tmp_path / "killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", "-m", "robustfast.train", *TRAIN, "--out", str(path)]
    with ended_at_the_latest(command) as torchrun:
        # After the first epoch's 12 steps: there are 12 left, and a checkpoint after every fifth.
        wait_for(path / "metrics.jsonl", torchrun)
        os.kill(worker(torchrun.pid, rank=rank), signal.SIGKILL)
        printed, complaints = torchrun.communicate(timeout=300)
    assert torchrun.returncode == 0, complaints
    assert f"restarted by torchrun (1 so far): the run in {path} goes on" in printed
    assert f"continuing {path} after " in printed
    assert [line["epoch"] for line in metrics(path)] == [epoch + 1 for epoch in range(EPOCHS)]
    assert_same_end(path, run[0])


def test_a_start_that_torchrun_does_not_count_goes_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine has come back: no process died, so the count of restarts is still 0."""
    config = tiny("digits-st", epochs=1, out=tmp_path / "run")
    fit(config)
    with pytest.raises(UserError, match="the folder is not empty"):
        fit(config)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    capsys.readouterr()
    assert fit(config) == config.out
    printed = capsys.readouterr().out
    assert f"restarted by torchrun: the run in {config.out} goes on" in printed
    assert "is finished: 1 epoch" in printed
    with pytest.raises(UserError, match=r"--seed 1 \(was 0\)"):
        fit(replace(config, seed=1))


@contextmanager
def ended_at_the_latest(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            # Torchrun ends its processes with itself.
            process.terminate()


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def worker(torchrun: int, *, rank: int) -> int:
    """The id of the process that `torchrun` started with this rank."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            child = f"PPid:\t{torchrun}\n" in (folder / "status").read_text()
            if child and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    raise AssertionError(f"torchrun has no process of rank {rank}")
