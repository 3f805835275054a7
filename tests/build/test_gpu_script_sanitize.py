"""The stage that runs kernels under compute-sanitizer, with a stand-in for the tool and none for what it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sanitize
import torch
from warm import Warm

from robustfast.ops import OPS

ROOT = Path(__file__).resolve().parents[2]

RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at void robustfast::step_l2<float>(T1 *, long)+0x90 in a.cu:17
=========     and Read access at void robustfast::step_l2<float, float>(T1 *, long)+0x2a0 in a.cu:23 [508 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at _kernel+0x1e0 in pgd_step.py:40
=========     by thread (3,0,0) in block (7,0,0)
=========     Address 0x7f2 is out of bounds
=========     and is 3 bytes after the nearest allocation at 0x7f0 of size 4 bytes
=========
========= Invalid __global__ write of size 4 bytes
=========     at (anonymous namespace)::take<float>(T1 *)+0x20
=========     by thread (0,0,0) in block (0,0,0)
========= Target application returned an error
========= ERROR SUMMARY: 2 errors
"""
THEIRS = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4, at::native::FillFunctor<float>>(int)+0x2c0
=========     by thread (96,0,0) in block (7,0,0)
=========
========= ERROR SUMMARY: 1 error
"""
WARNED = """========= Warning: Race reported between Write access at take(int *)+0x90 in a.cu:17
=========
========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [(RACE, 1, 0), (OUT_OF_BOUNDS, 2, 0), (THEIRS, 0, 1), (WARNED, 0, 0), ("", 0, 0)],
)
def test_reports_are_told_apart(text: str, ours: int, theirs: int) -> None:
    found = sanitize.reports(f"program output\n{text}more output\n")
    assert [len(each) for each in found] == [ours, theirs]
    # A report is whole: what, where, by whom.
    for report in found[0] + found[1]:
        assert " at " in report.replace("\n", " ")
        assert "SUMMARY" not in report


CLEAN = "========= ERROR SUMMARY: 0 errors\n"
RAN = f"pgd_step on cuda: 0 gradients of 48 samples\n{sanitize.DONE}\n"


@pytest.mark.parametrize(
    ("code", "text", "state", "errors"),
    [
        (0, RAN + CLEAN, "clean", 0),
        (9, RAN + RACE, "errors", 1),
        (9, RAN + OUT_OF_BOUNDS, "errors", 2),
        (9, RAN + THEIRS, "clean", 0),
        (9, RAN + CLEAN, "errors", 0),  # the tool saw an error that is in no report
        (0, RAN, "failed", 0),  # it was not there at all
        (None, "pgd_step on cuda: 0 gradients of 48 samples\n", "timed out", 0),
        (1, "========= Error: Device not supported\nTraceback\n", "failed", 0),
        (9, f"RuntimeError: an illegal memory access\n{OUT_OF_BOUNDS}", "errors", 2),
    ],
)
def test_what_becomes_of_a_process(code: int | None, text: str, state: str, errors: int) -> None:
    run = sanitize.Run("memcheck", "pgd_step", "")
    sanitize.judge(run, code, text)
    assert (run.state, run.errors) == (state, errors)
    assert run.elsewhere == (text is not None and "at::native" in text)
    assert run.state == "clean" or run.words
    assert run.state != "clean" or run.ran == ["pgd_step on cuda: 0 gradients of 48 samples"]


def test_initcheck_sees_every_kernel_and_the_others_leave_torchs_out() -> None:
    for tool in sanitize.TOOLS:
        argv = sanitize.command("tool", tool, ["program", "--run", "augment"])
        assert argv[:3] == ["tool", "--tool", tool]
        assert argv[-3:] == ["program", "--run", "augment"]
        assert ("--kernel-name-exclude" in argv) == (tool != "initcheck")
        assert argv[argv.index("--error-exitcode") + 1] == "9"


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_planted_faults_compile(tmp_path: Path) -> None:
    source = tmp_path / "planted.cu"
    source.write_text(sanitize.PLANTED)
    subprocess.run(["nvcc", "-arch", "sm_90", "-ptx", "-o", str(tmp_path / "ptx"), str(source)], check=True)
    code = (tmp_path / "ptx").read_text()
    for tool in sanitize.TOOLS:
        assert f".entry _Z9{tool}Pi" in code or f".entry _Z8{tool}Pi" in code
    # The compiler did not take the race, or the barrier, away.
    assert "st.volatile.shared" in code
    assert "ld.volatile.shared" in code
    assert "bar.sync" in code


# A stand-in for the tool: it runs the program, and finds what BEHAVIOUR says. In it OPS is what a report names.
TOOL = f"""#!{sys.executable}
import os, subprocess, sys, time
arguments = sys.argv[1:]
tool = arguments[arguments.index("--tool") + 1]
place = next(i for i, a in enumerate(arguments) if "planted" in a or a == sys.executable)
program, behaviour = arguments[place:], os.environ["BEHAVIOUR"]
open(os.environ["CALLS"], "a").write(os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "") + " " + tool + chr(10))
print("========= COMPUTE-SANITIZER")
if behaviour == "refuses":
    print("========= Error: Device not supported")
    sys.exit(1)
if "planted" in program[0]:
    if behaviour == "blind":
        print("========= ERROR SUMMARY: 0 errors")
        sys.exit(0)
    print(f"========= Invalid something\\n=========     at {{tool}}(int *)+0x20\\n========= ERROR SUMMARY: 1 error")
    sys.exit(9)
if behaviour == "hangs" and tool == "racecheck":
    print("hanging", flush=True)
    open(os.environ["CALLS"] + "-hangs", "w").write(str(os.getpid()))
    time.sleep(600)
# One test runs the real program: its imports take seconds.
code = subprocess.run(program).returncode if behaviour == "clean" else print("{sanitize.DONE}") or 0
if behaviour == "finds" and tool == "memcheck":
    print("========= Invalid __global__ read\\n=========     at take(int *)+0x20\\n========= ERROR SUMMARY: 1 error")
    sys.exit(9)
print("========= ERROR SUMMARY: 0 errors")
sys.exit(code)
"""
NVCC = """#!/bin/sh
for last; do :; done
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


class Machine:
    """A PATH with stand-ins for compute-sanitizer and nvcc."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder, self.warm, self.out = folder, warm, folder / "sanitize.json"
        tools = folder / "bin"
        tools.mkdir()
        for name, text in (("compute-sanitizer", TOOL), ("nvcc", NVCC)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "CALLS": str(folder / "calls"), "OMP_NUM_THREADS": "1"}

    def command(self, behaviour: str, *arguments: str) -> Any:
        argv = ["bench/sanitize.py", "--device", "cpu", "--jobs", "2", "--out", self.out, *arguments]
        return self.warm.command(*argv, cwd=ROOT, env=self.environment | {"BEHAVIOUR": behaviour})

    def run(self, behaviour: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
        with self.command(behaviour, *arguments) as command:
            printed, errors = command.communicate()
        assert "Traceback" not in errors, errors
        return command.returncode, json.loads(self.out.read_text()), printed


@pytest.fixture
def machine(tmp_path: Path, warm: Warm) -> Machine:
    return Machine(tmp_path, warm)


def test_an_op_runs_under_a_tool(machine: Machine) -> None:
    code, report, printed = machine.run("clean", "--ops", "dlr_loss", "--tools", "initcheck")
    assert code == 0, printed
    assert report["tools"] == {"initcheck": {"skipped": None, "planted": None}}
    assert [(run["tool"], run["op"], run["state"]) for run in report["runs"]] == [
        ("initcheck", "dlr_loss", "clean"),
    ]
    # The samples ran, backward too, without torch's own allocator.
    assert report["runs"][0]["ran"] == ["dlr_loss on cpp: 11 gradients of 11 samples"]
    assert (machine.folder / "calls").read_text().splitlines()[-1].startswith("1 ")
    assert {"device", "torch", "commit"} <= set(report["hardware"])
    assert str(ROOT) not in machine.out.read_text()


def test_an_error_is_named(machine: Machine) -> None:
    tools = ["memcheck", "racecheck", "initcheck"]
    code, report, printed = machine.run("finds", "--ops", "dlr_loss", "augment", "--tools", *tools)
    assert code == 1
    states = {(run["tool"], run["op"]): run["state"] for run in report["runs"]}
    assert states == {
        (tool, op): "errors" if tool == "memcheck" else "clean"
        for tool in tools
        for op in ("dlr_loss", "augment")
    }
    run = next(run for run in report["runs"] if run["tool"] == "memcheck")
    assert run["errors"] == 1
    assert run["words"] == ["Invalid __global__ read", "at take(int *)+0x20"]
    assert "at take(int *)" in printed


def test_a_tool_that_refuses_the_device_is_skipped_with_its_words(machine: Machine) -> None:
    code, report, printed = machine.run("refuses", "--ops", "dlr_loss", "--tools", "memcheck", "racecheck")
    assert code == sanitize.SKIPPED
    assert printed.splitlines()[-1] == "skipped: Error: Device not supported"
    assert report["runs"] == []
    words = {"skipped": "Error: Device not supported", "planted": None}
    assert report["tools"] == dict.fromkeys(("memcheck", "racecheck"), words)
    assert "memcheck: skipped, Error: Device not supported" in printed


def test_a_tool_that_finds_no_planted_fault_runs_and_is_not_believed(machine: Machine) -> None:
    code, report, printed = machine.run("blind", "--ops", "dlr_loss", "--tools", "memcheck")
    assert code == 0
    assert [run["state"] for run in report["runs"]] == ["clean"]
    reason = "the planted fault was not found: ERROR SUMMARY: 0 errors"
    assert report["tools"] == {"memcheck": {"skipped": None, "planted": reason}}
    assert f"memcheck: its silence proves nothing: {reason}" in printed


def test_without_the_tool_it_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitize, "find_tool", lambda: None)
    out = tmp_path / "sanitize.json"
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--device", "cpu", "--out", str(out)])
    assert sanitize.main() == sanitize.SKIPPED
    assert "compute-sanitizer is not on PATH" in capsys.readouterr().out
    assert set(json.loads(out.read_text())["tools"]) == set(sanitize.TOOLS)
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--ops", "no_such_op"])
    assert sanitize.main() == 2
    assert "no_such_op: no such op" in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["sanitize.py"])
        assert sanitize.main() == 2
        assert capsys.readouterr().err.startswith("error: torch sees no CUDA device")


def test_a_limit_loses_one_op_and_keeps_the_others(machine: Machine) -> None:
    few = ["--ops", "dlr_loss", "--tools", "memcheck", "racecheck"]
    # The hanging one is under racecheck: it alone is given up.
    begun = time.monotonic()
    command = machine.command("hangs", *few)
    with command:
        while not (machine.folder / "calls-hangs").exists() and time.monotonic() - begun < 120:
            time.sleep(0.1)
        while not machine.out.exists() or not json.loads(machine.out.read_text())["runs"]:
            time.sleep(0.1)
            assert time.monotonic() - begun < 120
        # As `make gpu` ends it at its own limit.
        command.send_signal(signal.SIGTERM)
        command.communicate()
    assert command.returncode == 130
    states = {run["tool"]: run["state"] for run in json.loads(machine.out.read_text())["runs"]}
    assert states == {"memcheck": "clean", "racecheck": "skipped"}
    # Nothing is left of it.
    hanging = int((machine.folder / "calls-hangs").read_text())
    assert not Path(f"/proc/{hanging}").exists() or "Z" in Path(f"/proc/{hanging}/stat").read_text()


def test_past_the_limit_of_one_op(tmp_path: Path) -> None:
    processes = sanitize.Processes()
    code, text = processes.run(
        [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(600)"],
        2,
        dict(os.environ),
    )
    assert (code, text) == (None, "begun\n")
    assert not processes.running


@pytest.mark.parametrize("name", OPS)
def test_every_op_can_be_run_so(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sanitize.exercise(name, "cpu")
    told, done = capsys.readouterr().out.splitlines()
    assert done == sanitize.DONE
    assert told.startswith(f"{name} on cpp: ")
    assert " of 0 samples" not in told


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_every_op_can_be_run_so_on_a_gpu(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    sanitize.exercise(name, "cuda")
    assert capsys.readouterr().out.splitlines()[-1] == sanitize.DONE
