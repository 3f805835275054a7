"""What `make gpu` runs, without a GPU: that its commands exist, and what becomes of a stage that fails or hangs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "bench" / "gpu.py"
STAGES = ["build", "test", "sanitize", "ops", "attack", "step", "epoch", "train", "precision"]
OTHERS = ["tune", "autoattack", "games", "cdvae"]


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def on_a_gpu(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[dict[str, list[object]]], None]:
    """on_a_gpu({stage: commands}): this machine is said to have a GPU, and these stages."""
    hardware = ModuleType("hardware")
    hardware.hardware = lambda device: {"device": str(device), "commit": "c1"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hardware", hardware)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr(gpu, "obstacle", lambda chosen: None)
    monkeypatch.setattr(gpu, "environment_on_top", lambda folder: None)
    monkeypatch.setattr(gpu, "built", lambda: True)
    monkeypatch.setattr(gpu, "STAMP", tmp_path / "build" / "stamp")

    def use(stages: dict[str, list[object]]) -> None:
        known = {name: gpu.Stage(commands) for name, commands in stages.items()}
        monkeypatch.setattr(gpu, "stages", lambda out, data_dir=None: known)

    return use


def test_a_dry_run_lists_each_stage_and_runs_none(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed(*arguments: str) -> list[str]:
        assert gpu.main(["--dry-run", "--out", str(tmp_path / "out"), *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return list(dict.fromkeys(line.split(" ", 1)[0] for line in lines))

    assert listed() == STAGES
    assert listed("--also", *OTHERS) == STAGES + OTHERS
    assert listed("--only", "epoch", "train", "--skip", "train") == ["epoch"]
    assert not (tmp_path / "out").exists()
    for wrong in (["--only", "nothing"], ["--minutes", "0"]):
        with pytest.raises(SystemExit, match="2"):
            gpu.main(wrong)


def test_every_command_exists_and_every_selection_finds_tests(
    warm: Warm, gpu: ModuleType, tmp_path: Path
) -> None:
    selections = []
    for stage in gpu.stages(tmp_path).values():
        for command in stage.commands:
            argv = command.argv
            if "pytest" in argv:
                selections.append(argv[argv.index("pytest") + 1 :])
                continue
            parts = argv[argv.index(sys.executable) + 1 :]
            if parts[0] == "-m":
                assert importlib.util.find_spec(parts[1]), argv
            else:
                assert (ROOT / parts[0]).exists(), argv
    files = {f"bench/{path.name}" for path in (ROOT / "bench").glob("bench_*.py")}
    benches = [selection for selection in selections if selection[1] in files]
    assert {selection[1] for selection in benches} == files
    others = [selection for selection in selections if selection not in benches]
    assert [selection[2:4] for selection in others] == [["-m", "gpu"], ["-m", "not gpu"]]
    assert all("--numprocesses" in selection for selection in others), "neither fits into ten minutes else"
    # One file stands for all tests: collecting all takes half a minute.
    fewer = [
        ["tests/ops/test_dlr_loss.py" if part == "tests" else part for part in selection[:4]]
        for selection in others
    ]
    # All benches are collected at once.
    nodes, marked, unmarked = collected(warm, ["-q", *sorted(files), *benches[0][2:]], *fewer)
    assert {node.partition("::")[0] for node in nodes} == files
    assert marked
    assert unmarked
    assert not set(marked) & set(unmarked)


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


def test_the_arguments_of_each_program_are_known(gpu: ModuleType, tmp_path: Path) -> None:
    """With data, and where it is told how long it may take."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    flags: dict[str, set[str]] = {}
    for stage in gpu.stages(tmp_path, tmp_path).values():
        for command in stage.commands:
            if (name := Path(command.argv[1]).name) and command.argv[1].startswith("bench/"):
                flags.setdefault(name, set()).update(p for p in command.within(60) if p.startswith("--"))
    assert "--data-dir" in flags["epoch.py"] & flags["table2.py"] & flags["precision_gradients.py"]
    for name, told in flags.items():
        # What the parser knows, without running the program: its imports are most of the time.
        source = (ROOT / "bench" / name).read_text()
        assert all(f'"{flag}"' in source for flag in told), (name, told)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def run(gpu: ModuleType, tmp_path: Path, *commands: list[str], limit: float = 60, **more: Any) -> Any:
    stage = gpu.Stage([gpu.Command(command, limit) for command in commands])
    return gpu.run(stage, dict(os.environ), tmp_path / "stage.log", **more)


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
    outcome = run(gpu, tmp_path, python(parent), python("print('next')"), limit=3)
    assert outcome.state == "timed out"
    assert outcome.reasons[0].startswith("after 3 s: python")
    assert [command["state"] for command in outcome.commands] == ["timed out", "passed"]
    assert outcome.tail[0] == "begun"
    assert outcome.tail[-2:] == ["KeyboardInterrupt", "next"]
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "missing", lambda chosen: {})
    assert gpu.main(["--only", "ops", "--out", str(tmp_path / "out")]) == 2
    refused = capsys.readouterr().err
    assert refused.startswith("error: torch sees no CUDA device")
    assert len(refused.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_program_that_cannot_do_its_work_here_is_skipped_with_its_words(
    gpu: ModuleType, tmp_path: Path
) -> None:
    outcome = run(gpu, tmp_path, python(f"print('skipped: no tool'); raise SystemExit({gpu.SKIPPED})"))
    assert outcome.state == "skipped"
    assert outcome.reasons[0].startswith("skipped: no tool: python -c")


def test_a_bench_that_is_ended_keeps_what_it_measured(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine takes its time to tell pytest-benchmark what it is.
    monkeypatch.setattr(gpu, "GRACE", 120.0)
    bench = tmp_path / "test_two_benches.py"
    bench.write_text(
        "import pathlib, time\n"
        "def test_one(benchmark):\n    benchmark.pedantic(lambda: None, rounds=1)\n"
        f"def test_two(benchmark):\n    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n    time.sleep(600)\n"
    )
    storage = f"--benchmark-storage=file://{tmp_path / 'stored'}"
    argv = [*gpu.PYTEST, str(bench), "-p", "no:cacheprovider", "--benchmark-autosave", storage]
    with open(tmp_path / "log", "wb") as log:
        # Beside the workers of pytest-xdist, which it knows by these, pytest-benchmark measures nothing.
        alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        process = gpu.start(argv, log, cwd=tmp_path, env=alone)
    for _ in range(600):
        if (tmp_path / "begun").exists():
            break
        time.sleep(0.1)
    gpu._end(process)
    (stored,) = (tmp_path / "stored").rglob("*.json")
    assert [bench["name"] for bench in json.loads(stored.read_text())["benchmarks"]] == ["test_one"]
    assert gpu.counts((tmp_path / "log").read_text())["passed"] == 1


def test_who_does_not_listen_is_killed(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True)"
    begun = time.monotonic()
    outcome = run(gpu, tmp_path, python(f"{deaf}; time.sleep(600)"), limit=1.5)
    assert outcome.state == "timed out"
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("== 3 failed, 12 passed, 1 skipped in 3.20s ==", {"failed": 3, "passed": 12, "skipped": 1}),
        ("2 passed, 1 deselected in 75.02s (0:01:15)\nmore", {"passed": 2, "deselected": 1}),
        ("no tests ran in 0.01s", {}),
        ("nothing of the kind", {}),
    ],
)
def test_what_pytest_counted_is_kept(gpu: ModuleType, said: str, found: dict[str, int]) -> None:
    assert gpu.counts(f"...\n{said}\n") == found


def test_a_budget_is_dealt_out_by_the_limits(gpu: ModuleType) -> None:
    assert gpu.share(1000, 100, 300, least=10) == 100  # enough for all
    assert gpu.share(200, 100, 300, least=10) == 50
    assert gpu.share(200, 100, 300, least=80) == 80  # less would be of no use
    assert gpu.share(60, 100, 300, least=80) == 0
    assert gpu.share(5, 3, 300, least=80) == 3  # all that it may take is less than its least
    assert gpu.Command(["x"], 60, tell=("--minutes", 60)).within(120) == ["x", "--minutes", "1.8"]


def test_commands_past_a_budget_are_said(gpu: ModuleType, tmp_path: Path) -> None:
    stage = gpu.Stage(
        [gpu.Command(python("print('one')"), 5, 1), gpu.Command(python("print('two')"), 900, 600)]
    )
    outcome = gpu.run(stage, dict(os.environ), tmp_path / "log", seconds=30)
    assert outcome.state == "cut short"
    assert outcome.reasons[0].endswith("s are too few for python -c print('two')")
    assert outcome.tail == ["one"]


def test_a_command_that_a_budget_ends_has_not_failed(gpu: ModuleType, tmp_path: Path) -> None:
    stage = gpu.Stage([gpu.Command(python("import time; time.sleep(600)"), 900, least=1)])
    outcome = gpu.run(stage, dict(os.environ), tmp_path / "log", seconds=1.3)
    assert outcome.state == "cut short"
    assert outcome.reasons[0].startswith("after 1 s: python -c")


def test_a_run_with_too_little_time_skips_and_says_so(
    gpu: ModuleType, on_a_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_gpu(
        {
            "build": [gpu.Command(python("print('built')"), 20, least=1)],
            "test": [gpu.Command(python("print('tested')"), 900, least=300)],
            "ops": [gpu.Command(python("print('timed')"), 20, least=1)],
        }
    )
    assert gpu.main(["--out", str(tmp_path), "--minutes", "2"]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    states = {name: stage["state"] for name, stage in found["stages"].items()}
    assert states == {"build": "passed", "test": "skipped", "ops": "passed"}
    assert re.fullmatch(r"1\d\d s are left of --minutes 2", found["stages"]["test"]["reasons"][0])
    assert "test: skipped" in capsys.readouterr().out


def test_the_build_may_take_all_that_is_left(gpu: ModuleType, on_a_gpu: Any, tmp_path: Path) -> None:
    on_a_gpu(
        {
            "build": [gpu.Command(python("0"), 100, least=1)],
            "test": [gpu.Command(python("0"), 900, least=1)],
            "ops": [gpu.Command(python("0"), 900, least=1)],
        }
    )
    assert gpu.main(["--out", str(tmp_path), "--minutes", "2"]) == 0
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    limits = [stages[name]["commands"][0]["limit"] for name in ("build", "test")]
    assert limits[0] == 100
    assert 50 <= limits[1] <= 60


def test_the_bench_that_targets_are_read_from_is_not_starved(gpu: ModuleType, tmp_path: Path) -> None:
    first, *others = gpu.stages(tmp_path)["ops"].commands
    assert first.argv[-5] == "bench/bench_pgd_step.py"
    assert gpu.share(300, first.limit, sum(other.limit for other in others), first.least) >= 150


def test_each_stage_is_written_before_the_next_begins(
    gpu: ModuleType, on_a_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    reads = f"print(open({str(report)!r}).read().count('exit code 3'))"
    on_a_gpu(
        {
            "build": [gpu.Command(python("raise SystemExit(3)"), 60)],
            "test": [gpu.Command(python(reads), 60)],
        }
    )
    assert gpu.main(["--out", str(tmp_path)]) == 1
    found = json.loads(report.read_text())
    assert found["hardware"] == {"device": "cuda:0", "commit": "c1"}
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {
        "build": "failed",
        "test": "passed",
    }
    assert found["stages"]["test"]["tail"] == ["1"]
    # One file has it all, and the table of targets is printed last.
    assert {row["verdict"] for row in found["targets"]} == {"not measured"}
    *_, count, where = capsys.readouterr().out.splitlines()
    assert count == f"0 met, 0 missed, {len(found['targets'])} not measured"
    assert where.endswith("report.json has all of it")


def test_stages_of_an_earlier_run_join_this_one(
    gpu: ModuleType, on_a_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu"
    on_a_gpu({"build": [gpu.Command(python("0"), 60)], "test": [gpu.Command(python("1"), 60)]})
    assert gpu.main(["--out", str(out), "--only", "build"]) == 0
    assert gpu.main(["--out", str(out), "--only", "test"]) == 0
    assert list(json.loads((out / "report.json").read_text())["stages"]) == ["build", "test"]
    # One that has no time now keeps what it found then.
    assert gpu.main(["--out", str(out), "--only", "test", "--minutes", "0.01"]) == 0
    assert json.loads((out / "report.json").read_text())["stages"]["test"]["state"] == "passed"
    # Those of other code do not.
    (out / "report.json").write_text(
        json.dumps({"hardware": {"device": "cuda:0", "commit": "c0"}, "stages": {}})
    )
    (out / "epoch.json").write_text("{}")
    assert gpu.main(["--out", str(out), "--only", "test"]) == 0
    assert list(json.loads((out / "report.json").read_text())["stages"]) == ["test"]
    assert not (out / "epoch.json").exists()
    (aside,) = tmp_path.glob("gpu-c0-*")
    assert (aside / "epoch.json").exists()
    assert f"now lie in {aside.name}" in capsys.readouterr().out


STOPPED = """
import json, os, signal, sys, types
sys.path.insert(0, "bench")
import gpu, torch
torch.cuda.get_device_capability, torch.cuda.current_device = lambda: (9, 0), lambda: 0
sys.modules["hardware"] = types.SimpleNamespace(hardware=lambda device: {"device": "none"})
gpu.obstacle, gpu.environment_on_top, gpu.built = lambda chosen: None, lambda folder: None, lambda: True
gpu.STAMP = __import__("pathlib").Path(sys.argv[1], "stamp")
program = lambda code: gpu.Command([sys.executable, "-c", code], 600)
stages = {
    "build": [program("print('built')")],
    "test": [program("import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)")],
    "ops": [program("print('timed')")],
}
gpu.stages = lambda out, data_dir=None: {name: gpu.Stage(commands) for name, commands in stages.items()}
sys.exit(gpu.main(["--out", sys.argv[1]]))
"""


def test_sigterm_keeps_the_report(warm: Warm, tmp_path: Path) -> None:
    done = warm.run("-c", STOPPED, tmp_path, cwd=ROOT)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    found = json.loads((tmp_path / "report.json").read_text())
    assert {name: stage["state"] for name, stage in found["stages"].items()} == {
        "build": "passed",
        "test": "cut short",
    }
    assert found["stages"]["test"]["reasons"][0].startswith("the run was stopped in python -c")
    assert done.stdout.splitlines()[-1].endswith("has all of it")


def test_it_builds_for_this_gpu_alone(
    gpu: ModuleType, on_a_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0;10.0")
    on_a_gpu({"build": [gpu.Command(python("import os; print(os.environ['TORCH_CUDA_ARCH_LIST'])"), 60)]})
    assert gpu.main(["--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["stages"]["build"]["tail"] == ["9.0"]


def test_a_machine_without_the_library_builds_it_first(
    gpu: ModuleType, on_a_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu({"build": [gpu.Command(python("0"), 60)], "ops": [gpu.Command(python("0"), 60)]})
    monkeypatch.setattr(gpu, "built", lambda: False)
    assert gpu.main(["--out", str(tmp_path), "--only", "ops"]) == 0
    assert list(json.loads((tmp_path / "report.json").read_text())["stages"]) == ["build", "ops"]
    assert gpu.STAMP.read_text() == gpu.sources()


def test_a_library_of_other_sources_is_built_again(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(gpu, "CHECK", python("0"))
    assert not gpu.built()
    gpu.STAMP.write_text(gpu.sources())
    assert gpu.built()
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    assert not gpu.built()  # made for another GPU
    gpu.STAMP.write_text(gpu.sources())
    monkeypatch.setattr(gpu, "CHECK", python("raise SystemExit(1)"))
    assert not gpu.built()  # without CUDA kernels


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_library_without_cuda_fails_the_build(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.CHECK[1:] == ["bench/gpu.py", "--library"]
    assert gpu.main(["--library"]) == 1
    assert re.search(r"^pgd_step has no cuda backend: .*CUDA", capsys.readouterr().out, re.MULTILINE)
