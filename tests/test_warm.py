"""Forked commands against what Python makes of the same command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from warm import Warm

PROGRAM = """
import os, sys, threading
print(__name__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("HERE"), os.environ.get("HOME"))
print("mistake", file=sys.stderr)
threading.Thread(target=lambda: print("before the end")).start()
sys.exit(int(sys.argv[-1]))
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "program"])
def test_a_forked_command_is_what_python_makes_of_it(kind: str, warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    start = {"-c": ["-c", PROGRAM], "-m": ["-m", "a_program"], "program": [str(tmp_path / "a_program.py")]}
    argv = [*start[kind], "two words", "3"]
    env = {name: value for name, value in os.environ.items() if name != "HOME"} | {"HERE": "yes"}
    command = [sys.executable, *argv]
    expected = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    found = warm.run(*argv, cwd=tmp_path, env=env)
    assert expected.returncode == 3
    assert (found.returncode, found.stdout, found.stderr) == (3, expected.stdout, expected.stderr)


def test_signals_reach_it_and_its_end_is_told(warm: Warm) -> None:
    waits = "import time; print('waiting', flush=True); time.sleep(600)"
    for number in (signal.SIGTERM, signal.SIGKILL):
        with warm.command("-c", waits) as command:
            assert command.stdout.readline() == "waiting\n"
            assert command.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                command.wait(0.01)
            command.send_signal(number)
            assert command.wait(60) == -number == command.poll()


def test_it_does_not_outlive_its_block(warm: Warm) -> None:
    with warm.command("-c", "import time; time.sleep(600)") as command:
        os.kill(command.pid, 0)
    assert command.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(command.pid, 0)


def test_each_rank_of_a_world_knows_its_place(warm: Warm) -> None:
    code = "import os; print(*(os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT')))"
    said = [end.stdout.split() for end in warm.world(3, "-c", code)]
    assert [place[:3] for place in said] == [[f"{rank}", "3", f"{rank}"] for rank in range(3)]
    assert len({place[3] for place in said}) == 1
