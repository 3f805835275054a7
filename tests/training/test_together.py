"""Two processes of one run, of which one fails or is asked to stop: both end, and one of them says it in one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import metrics
from warm import Command, Warm

from robustfast import train
from robustfast.command_line import main_wrapper
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.together import together
from robustfast.training import checkpoint
from robustfast.training.fit import resume

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch is built without gloo",
)

Two = Callable[..., AbstractContextManager[list[Command]]]

TRAIN = ["-m", "robustfast.train", "digits-st", "--device", "cpu", "--no-tensorboard", "--no-evaluate"]


@pytest.fixture
def two(warm: Warm) -> Two:
    """`two_of` with the program that commands are forked from."""
    return partial(two_of, warm)


@contextmanager
def two_of(
    warm: Warm, *argv: str | Path, environment: tuple[dict[str, str], dict[str, str]] = ({}, {})
) -> Iterator[list[Command]]:
    """Rank 0 and rank 1 of a world of two, each with variables of its own, which do not outlive the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                warm.command(
                    *argv, env=os.environ | world | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} | own
                )
            )
            for rank, own in enumerate(environment)
        ]


def ends(processes: list[Command]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, and what was printed on stdout and on stderr, by rank."""
    printed = [process.communicate(timeout=300) for process in processes]
    return (
        [process.returncode for process in processes],
        [out for out, _ in printed],
        [err for _, err in printed],
    )


def test_a_mistake_that_both_make_is_said_once(two: Two, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with two(*TRAIN, "--out", tmp_path) as processes:
        codes, _, err = ends(processes)
    assert codes == [2, 2]
    assert err[1] == ""
    assert re.fullmatch(r"error: --out .*: the folder is not empty; .*\n", err[0])


@pytest.mark.parametrize(("rank", "said"), [("0", "error: --epochs 0: expected at least 1\n"), ("1", "")])
def test_a_mistake_in_the_arguments_is_said_once_on_each_machine(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert main_wrapper(train.main, ["digits-st", "--epochs", "0"]) == 2
    assert capsys.readouterr().err == said


def test_a_mistake_that_only_one_makes_ends_both(two: Two, tmp_path: Path) -> None:
    """The data lie where rank 0 looks for them, and not where rank 1 does."""
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        for shade, name in enumerate(("dark", "light")):
            folder = tmp_path / "here" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                image.new("L", (8, 8), 60 + 120 * shade + number).save(folder / f"{number}.png")
    places = {"ROBUSTFAST_DATA": str(tmp_path / "here")}, {"ROBUSTFAST_DATA": str(tmp_path / "nowhere")}
    flags = ["--dataset", "image_folder", "--batch-size", "4", "--epochs", "1", "--out", tmp_path / "run"]
    with two(*TRAIN, *flags, environment=places) as processes:
        codes, _, err = ends(processes)
    assert codes == [2, 2]
    assert err[0] == ""
    assert re.fullmatch(rf"error: .*{tmp_path}/nowhere.*\n", err[1])
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_loss_that_is_not_finite_is_told_with_the_images_of_both(two: Two, tmp_path: Path) -> None:
    flags = ["--epochs", "4", "--lr", "1e30", "--schedule", "multistep", "--out", tmp_path / "run"]
    with two(*TRAIN, *flags) as processes:
        codes, _, err = ends(processes)
    assert codes == [2, 2]
    assert sorted(text.count("\n") for text in err) == [0, 1]
    assert "on 120 images (indices " in "".join(err)
    index = checkpoint.load(tmp_path / "run" / "checkpoints" / "nonfinite.pt")["index"]
    assert len(index.unique()) == 120


def test_one_is_asked_to_stop_and_both_do(two: Two, tmp_path: Path) -> None:
    """And a single process goes on from where the two of them were."""
    run = tmp_path / "run"
    with two(*TRAIN, "--epochs", "60", "--validate-every", "60", "--out", run) as processes:
        while not (run / "metrics.jsonl").exists():
            assert all(process.poll() is None for process in processes), ends(processes)
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)
        codes, _, err = ends(processes)
    assert codes == [143, 143]
    assert err[1] == ""
    assert re.fullmatch(rf"stopped by SIGTERM, after .*; continue with: .* --resume {run}\n", err[0])
    left = checkpoint.load(run / "checkpoints" / "last.pt")
    assert left["epoch"] < 60
    assert len(left["meters"]) == 2
    # Cut short, so that the rest takes no time.
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"epochs": 60', f'"epochs": {left["epoch"] + 1}'))
    resume(run)
    assert [line["epoch"] for line in metrics(run)] == list(range(1, left["epoch"] + 2))


def test_alone_a_job_is_just_done() -> None:
    def fails() -> None:
        raise UserError("mine")

    assert together(World(), lambda: 7) == 7
    with pytest.raises(UserError, match=r"^mine$"):
        together(World(), fails)
