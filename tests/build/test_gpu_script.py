"""What `make gpu` runs, without a GPU: that its commands exist, and what becomes of a stage that fails or hangs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.py"
Script = Callable[..., subprocess.CompletedProcess[str]]
STAGES = ["build", "test", "sanitize", "ops", "attack", "step", "autoattack", "epoch", "games", "cdvae"]
STAGES += ["train"]
PROGRAMS = [f"bench/{name}.py" for name in ("epoch", "games", "autoattack", "cdvae")]


@pytest.fixture
def script(warm: Warm) -> Script:
    """The script as a command."""
    return partial(warm.run, SCRIPT, cwd=ROOT)


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up there.
    sys.modules["gpu_script"] = module
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_lists_each_stage_and_runs_none(script: Script, tmp_path: Path) -> None:
    listed = script("--dry-run", "--out", str(tmp_path / "out"))
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert list(dict.fromkeys(line.split(" ", 1)[0] for line in lines)) == STAGES
    assert not (tmp_path / "out").exists()
    some = script("--dry-run", "--only", "epoch", "train", "--skip", "train")
    assert [line.split(" ", 1)[0] for line in some.stdout.splitlines()] == ["epoch"]
    assert script("--only", "nothing").returncode == 2


def test_every_command_exists_and_every_selection_finds_tests(
    warm: Warm, gpu: ModuleType, tmp_path: Path
) -> None:
    selections = []
    for stage in gpu.stages(tmp_path).values():
        for command in stage.commands:
            if "pytest" in command:
                selections.append(command[command.index("pytest") + 1 :])
                continue
            parts = command[1:] if command[0] == sys.executable else command
            assert parts[0] == "-m" or parts[0] in PROGRAMS, command
            assert parts[0] != "-m" or importlib.util.find_spec(parts[1]), command
            assert parts[0] == "-m" or (ROOT / parts[0]).exists(), command
    files = {f"bench/{path.name}" for path in (ROOT / "bench").glob("bench_*.py")}
    benches = [selection for selection in selections if selection[1] in files]
    assert {selection[1] for selection in benches} == files
    others = {tuple(selection) for selection in selections if selection not in benches}
    assert len(others) == 3
    # One folder stands for all tests, of which the marked ones are wanted: collecting all takes half a minute.
    fewer = [["tests/attacks" if part == "tests" else part for part in selection] for selection in others]
    # All benches are collected at once.
    nodes, *more = collected(warm, ["-q", *sorted(files), *benches[0][2:]], *fewer)
    assert {node.partition("::")[0] for node in nodes} == files
    assert len(more) == 3
    assert all(more)


COLLECT = """
import json, sys, pytest
for arguments in map(json.loads, sys.argv[1:]):
    code = pytest.main([*arguments, "--collect-only"])
    print("exit code", int(code), flush=True)
"""


def collected(warm: Warm, *selections: list[str]) -> list[list[str]]:
    """The tests that pytest finds for each command line, in one process."""
    listed = warm.run("-c", COLLECT, *map(json.dumps, selections), cwd=ROOT)
    assert listed.returncode == 0, listed.stderr
    *each, rest = listed.stdout.split("exit code 0\n")
    assert (len(each), rest) == (len(selections), ""), listed.stdout
    return [[line for line in part.splitlines() if "::" in line] for part in each]


def test_the_arguments_of_the_epoch_stage_are_known(warm: Warm, gpu: ModuleType, tmp_path: Path) -> None:
    (command,) = gpu.stages(tmp_path)["epoch"].commands
    told = warm.run(command[1], "--help", cwd=ROOT)
    assert told.returncode == 0, told.stderr
    help_text = told.stdout
    for flag in (part for part in command if part.startswith("--")):
        assert f"{flag} " in help_text, flag


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(
    gpu: ModuleType, tmp_path: Path, *commands: list[str], limit: int = 60, needs: str | None = None
) -> object:
    return gpu.run(gpu.Stage(list(commands), limit, needs), dict(os.environ), tmp_path / "stage.log")


def test_a_stage_that_passes(gpu: ModuleType, tmp_path: Path) -> None:
    outcome = run(gpu, tmp_path, python("print('one')"), python(f"print({str(ROOT)!r})"))
    assert (outcome.state, outcome.reasons) == ("passed", [])
    assert outcome.tail == ["one", "."]  # no folder of this machine


def test_a_failing_command_is_named_and_the_next_one_runs(gpu: ModuleType, tmp_path: Path) -> None:
    outcome = run(gpu, tmp_path, python("import sys; sys.exit('broken')"), python("print('still here')"))
    assert outcome.state == "failed"
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith("exit code 1: python")
    assert outcome.tail == ["broken", "still here"]


def test_a_hanging_command_ends_with_all_that_it_started(gpu: ModuleType, tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    parent = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(p.pid)); print('begun', flush=True); time.sleep(600)"
    )
    outcome = run(gpu, tmp_path, python(parent), python("print('next')"), limit=5)
    assert outcome.state == "timed out"
    assert outcome.reasons[0].startswith("after 5 s: python")
    assert outcome.tail == ["begun", "next"]
    assert ended(int((tmp_path / "child").read_text()))


def ended(process: int) -> bool:
    for _ in range(100):
        try:
            # A zombie that nobody has waited for yet is no process any more.
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_tool_that_is_missing_is_skipped(gpu: ModuleType, tmp_path: Path) -> None:
    outcome = run(gpu, tmp_path, ["no-such-tool"], needs="no-such-tool")
    assert (outcome.state, outcome.reasons) == ("skipped", ["no-such-tool is not on PATH"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(script: Script, tmp_path: Path) -> None:
    refused = script("--only", "ops", "--out", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: torch sees no CUDA device")
    assert len(refused.stderr.splitlines()) == 1


def test_missing_packages_come_from_a_folder_of_wheels(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.missing_packages() == []
    monkeypatch.setattr(gpu, "PACKAGES", {"no_such_module_of_ours": "no-such-distribution-of-ours"})
    assert "missing packages: no_such_module_of_ours" in gpu.obstacle()
    assert "--wheels DIR" in gpu.obstacle()
    log = tmp_path / "wheels.log"
    assert (
        gpu.install(tmp_path / "nowhere", dict(os.environ), log)
        == f"--wheels {tmp_path / 'nowhere'} is no folder"
    )
    reason = gpu.install(tmp_path, dict(os.environ), log)
    assert "does not have all of no-such-distribution-of-ours" in reason
    assert "No matching distribution" in log.read_text()


def test_each_stage_is_written_before_the_next_begins(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.json"
    stages = {
        "first": gpu.Stage([python("raise SystemExit(3)")], 60),
        "second": gpu.Stage([python(f"print(open({str(report)!r}).read().count('exit code 3'))")], 60),
    }
    monkeypatch.setattr(gpu, "stages", lambda out: stages)
    monkeypatch.setattr(gpu, "obstacle", lambda: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setitem(sys.modules, "hardware", ModuleType("hardware"))
    sys.modules["hardware"].hardware = lambda device: {"device": str(device)}  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 1
    found = json.loads(report.read_text())
    assert found["hardware"] == {"device": "cuda:0"}
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {
        "first": "failed",
        "second": "passed",
    }
    assert found["stages"]["second"]["tail"] == ["1"]
