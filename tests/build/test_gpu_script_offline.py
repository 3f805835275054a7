"""`make gpu` without a network: nothing is downloaded, what is missing is named or comes from a folder of wheels."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gpu
import pytest

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
}

# A Python that records what it is asked for, and whose pip fails as one without a network does.
PYTHON = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in
    */environment.py|.ci/environment.py) echo {kind} key no it is a stand-in;;
    -m) echo "no network" >&2; exit 1;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile and what it runs, in a folder of its own."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    return tmp_path


def make(checkout: Path, kind: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    python, calls = checkout / "python", checkout / "calls"
    python.write_text(PYTHON.format(calls=calls, kind=kind))
    python.chmod(0o755)
    command = ["make", "gpu", f"PYTHON={python}", *arguments]
    done = subprocess.run(command, cwd=checkout, env=OUTSIDE, capture_output=True, text=True, check=False)
    return done, calls.read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("kind", ["own", "inherit", "venv"])
def test_make_gpu_installs_nothing_and_runs_the_script_at_once(checkout: Path, kind: str) -> None:
    done, calls = make(checkout, kind, "ARGS=--wheels DIR --minutes 9")
    assert done.returncode == 0, done.stderr
    assert calls == [".ci/environment.py", "bench/gpu.py --wheels DIR --minutes 9"]
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".stamps").exists()
    assert "environment: " in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_takes_the_environment_that_make_test_made(checkout: Path) -> None:
    ours = checkout / ".venv" / "bin" / "python"
    ours.parent.mkdir(parents=True)
    ours.write_text("#!/bin/sh\necho ours: $@\n")
    ours.chmod(0o755)
    done, calls = make(checkout, "venv")
    assert calls == [".ci/environment.py"]
    assert "ours: bench/gpu.py" in done.stdout


def test_pip_never_looks_at_an_index(tmp_path: Path) -> None:
    assert "--no-index" in gpu.PIP
    commands = [command.argv for stage in gpu.stages(tmp_path).values() for command in stage.commands]
    installing = [argv for argv in commands if "pip" in argv]
    assert installing
    for argv in installing:
        assert argv[: len(gpu.PIP)] == gpu.PIP
        assert "--no-build-isolation" in argv  # which would download setuptools
        assert "--no-deps" in argv


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    known = gpu.here
    monkeypatch.setattr(gpu, "here", lambda module: module not in modules and known(module))


def test_what_is_missing_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict.fromkeys((*gpu.REQUIRED, *gpu.OPTIONAL))
    monkeypatch.setattr(gpu, "here", everything.__contains__)
    assert gpu.missing(["build", "test", "train"]) == {}
    without(monkeypatch, "tyro", "hypothesis", "nvidia.dali")
    assert gpu.missing(["build", "test", "train"]) == {"hypothesis": ("test",), "tyro": ("test", "train")}
    reason = gpu.obstacle(["build", "test", "ops", "train"])
    assert reason is not None
    assert reason.startswith("missing packages: hypothesis, tyro; give their wheels: --wheels DIR, or ")
    assert reason.endswith("--skip test train")
    # What only some tests need keeps nothing from running, and is said.
    assert gpu.missing(["build", "sanitize", "ops", "attack"]) == {}
    assert gpu.optional_missing() == ["nvidia.dali"]


def test_without_torch_there_is_nothing_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    reason = gpu.obstacle(["ops"])
    assert reason is not None
    assert reason.startswith("missing packages: torch")
    assert "--skip" not in reason


def wheel(folder: Path, name: str, requires: str = "") -> None:
    """The smallest distribution that pip installs: a module without a line."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    files = {
        f"{module}.py": b"",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}\n")
    with zipfile.ZipFile(folder / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")


def test_wheels_go_into_an_environment_on_top_of_one_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One environment for all that is asked of it: making one takes a second, and so does each pip."""
    assert gpu.environment_on_top(tmp_path / "none") is None or not os.access(sys.prefix, os.W_OK)
    monkeypatch.setattr(gpu.os, "access", lambda path, mode: False)
    python = gpu.environment_on_top(tmp_path / "environment")
    assert python == str(tmp_path / "environment" / "bin" / "python")
    monkeypatch.undo()

    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "first-of-ours", "Requires-Dist: needed-by-it\n")
    wheel(folder, "needed-by-it")
    wheel(folder, "alone-of-ours", "Requires-Dist: nowhere-to-be-had\n")
    required = {"first_of_ours": ("first-of-ours", ("ops",)), "absent": ("absent-dist", ("train",))}
    monkeypatch.setattr(gpu, "REQUIRED", required)
    optional = {"alone_of_ours": "alone-of-ours", "not_there": "not-there-either", "fails": "fails"}
    monkeypatch.setattr(gpu, "OPTIONAL", optional)
    monkeypatch.setattr(gpu, "WITHOUT_DEPENDENCIES", ("alone_of_ours",))
    (folder / "fails-1.0-py3-none-any.whl").write_bytes(b"no archive")
    monkeypatch.setattr(gpu, "PIP", [python, *gpu.PIP[1:]])

    log, environment = tmp_path / "wheels.log", dict(os.environ)
    assert gpu.install(folder, ["ops"], environment, log) is None
    assert "fails does not install" in capsys.readouterr().out
    assert "torch==" in log.with_suffix(".constraints").read_text()
    # They are there, above all that was there before: torch and pip are the environment's below.
    seen = "import importlib.util as u; print([bool(u.find_spec(m)) for m in {}])"
    modules = ["first_of_ours", "needed_by_it", "alone_of_ours", "torch", "pip"]
    told = subprocess.run([python, "-c", seen.format(modules)], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str([True] * 5)
    assert not any(map(gpu.here, modules[:3]))
    # What the folder lacks is named.
    reason = gpu.install(folder, ["train"], environment, log)
    assert reason is not None
    assert "does not have all of absent-dist" in reason
    assert "No matching distribution" in log.read_text()
    assert gpu.install(tmp_path / "nowhere", ["ops"], environment, log) == (
        f"--wheels {tmp_path / 'nowhere'} is no folder"
    )


def test_a_read_only_environment_is_left_for_one_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[list[str]] = []

    class Began(Exception):  # noqa: N818
        """A process that became another one does nothing more."""

    def become(path: str, argv: list[str]) -> None:
        began.append([path, *argv])
        raise Began

    monkeypatch.setattr(gpu.os, "execv", become)
    monkeypatch.setattr(gpu, "environment_on_top", lambda folder: str(tmp_path / "python"))
    with pytest.raises(Began):
        gpu.main(["--only", "ops", "--out", str(tmp_path / "out")])
    python = str(tmp_path / "python")
    assert began == [[python, python, gpu.__file__, "--only", "ops", "--out", str(tmp_path / "out")]]


def test_what_a_run_went_without_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {"ops": gpu.Stage([gpu.Command([sys.executable, "-c", "0"], 60)])}
    for name, value in {
        "stages": lambda out, data_dir=None: stages,
        "obstacle": lambda chosen: None,
        "environment_on_top": lambda folder: None,
        "built": lambda: True,
        "optional_missing": lambda: ["foolbox", "nvidia.dali"],
    }.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("hardware.hardware", lambda device: {"device": "none"})
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert "without foolbox, nvidia.dali: what needs them is skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["without"] == ["foolbox", "nvidia.dali"]
