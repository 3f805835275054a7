"""SIGTERM and SIGINT, sent by the system: the step is finished and kept, one line says how to go on, 128 + signal."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from warm import Command, Warm

from robustfast.command_line import main_wrapper
from robustfast.signals import Stopped, StopRequest, raised_on_sigterm, signal_behind
from robustfast.training import checkpoint
from robustfast.training.run_folder import RunFolder

TRAIN = ["digits-st", "--batch-size", "64", "--device", "cpu", "--no-tensorboard", "--validate-every", "0"]


def wait_for(process: Command, start: str) -> None:
    """Read what a process prints up to the line that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return
    pytest.fail(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_training_finishes_its_step_and_says_how_to_go_on(
    warm: Warm, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with warm.command("-m", "robustfast.train", *TRAIN, "--epochs", "1000", "--out", run) as process:
        wait_for(process, "epoch    2/1000")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.startswith(f"stopped by {number.name}, after ")
    assert err.endswith(f"; continue with: python -m robustfast.train --resume {run}\n")
    assert err.count("\n") == 1
    found = checkpoint.load_newest(run / "checkpoints", say=pytest.fail)
    assert found is not None
    reached = [f"{found[0]['epoch']} epochs"] + [f"{found[0]['step']} step"] * bool(found[0]["step"])
    assert all(part in err for part in reached)
    # Nothing went on behind that line: the epochs that were printed are those that were checkpointed.
    assert found[0]["epoch"] - 2 == sum(line.startswith("epoch ") for line in out.splitlines())


def test_evaluation_after_training_ends_with_the_same_code(warm: Warm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with warm.command("-m", "robustfast.train", *TRAIN, "--epochs", "1", "--out", run) as process:
        wait_for(process, "run folder: ")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    mend = f"evaluate it with: python -m robustfast.evaluate {run}"
    assert err == f"stopped by SIGTERM, {run} is trained; {mend}\n"
    assert not (run / "evaluation").exists()
    assert RunFolder.open(run).config.epochs == 1


HANGING = """
import sys, time
from robustfast import train
from robustfast.command_line import main_wrapper
from robustfast.training.engine import Engine

def hang(*args, **keywords):
    print("in a step", flush=True)
    while True:
        time.sleep(600)

Engine.step = hang
sys.exit(main_wrapper(train.main))
"""


def test_a_second_signal_ends_at_once(warm: Warm, tmp_path: Path) -> None:
    """Also inside a step that never ends."""
    with warm.command("-c", HANGING, *TRAIN, "--out", tmp_path / "run") as process:
        wait_for(process, "in a step")
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert (
        err == f"stopped by SIGTERM, continue with: python -m robustfast.train --resume {tmp_path / 'run'}\n"
    )


def test_a_request_is_remembered_and_a_second_one_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.number == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(Stopped) as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert signal_behind(caught.value) == signal.SIGINT
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == before


def test_under_torchrun_the_same_request_may_come_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.number == signal.SIGINT


def test_a_thread_leaves_the_handlers_to_the_main_thread() -> None:
    numbers = []

    def work() -> None:
        with StopRequest() as stop, raised_on_sigterm():
            numbers.append(stop.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert numbers == [0]


def test_any_command_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    # As at a terminal: where tests run in the background, the shell has them ignore it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            assert main_wrapper(lambda argv, number=number: os.kill(os.getpid(), number), []) == 128 + number
            assert capsys.readouterr().err == f"stopped by {number.name}\n"
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
