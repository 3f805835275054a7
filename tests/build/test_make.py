"""The Makefile's first words and its choice of an environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHOOSER = ROOT / ".ci" / "environment.py"
TARGETS = ("train", "test", "bench", "gpu", "lint", "clean")

# `make test` runs these tests: without this the make they start would take itself for a part of that one, and say so.
OUTSIDE = {
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_plain_make_gives_each_target_one_line() -> None:
    result = subprocess.run(
        ["make", "-f", ROOT / "Makefile"], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True, check=True
    )
    assert re.findall(r"^make (\w+) +\w", result.stdout, re.MULTILINE) == list(TARGETS)
    assert len(result.stdout.splitlines()) == len(TARGETS)


@needs_make
@pytest.mark.parametrize("target", ["train", "test"])
def test_a_python_that_does_not_run_is_named(target: str) -> None:
    command = ["make", target, "PYTHON=/no/such/python"]
    result = subprocess.run(command, cwd=ROOT, env=OUTSIDE, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "/no/such/python does not run" in result.stderr


def choose(
    folder: Path,
    torch: str | None,
    *,
    pip: bool = True,
    managed: bool = False,
    writable: bool = True,
    in_venv: bool = True,
) -> str:
    """What the chooser says of a made-up environment."""
    packages = folder / "packages"
    packages.mkdir()
    if torch:
        info = packages / f"torch-{torch}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n")
    if pip:
        (packages / "pip.py").touch()
    library = folder / "library"
    library.mkdir()
    if managed:
        (library / "EXTERNALLY-MANAGED").touch()
    program = f"""
import os, runpy, sys, sysconfig
sys.path[:] = [{str(packages)!r}] + [p for p in sys.path if "site-packages" not in p]
sys.prefix = sys.base_prefix + ("/elsewhere" if {in_venv} else "")
paths = {{"purelib": {str(packages)!r}, "stdlib": {str(library)!r}}}
get = sysconfig.get_path
sysconfig.get_path = lambda name, *rest: paths.get(name) or get(name, *rest)
os.access = lambda path, mode: {writable}
runpy.run_path({str(CHOOSER)!r}, run_name="__main__")
"""
    command = [sys.executable, "-S", "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def kind(text: str) -> str:
    return text.split()[0]


@pytest.mark.parametrize("torch", ["2.10.0", "2.13.0+cu130", "3.0.1"])
def test_an_environment_with_torch_is_used(tmp_path: Path, torch: str) -> None:
    text = choose(tmp_path, torch)
    assert kind(text) == "own"
    assert f"torch {torch} in" in text


@pytest.mark.parametrize(
    ("torch", "reason"), [(None, "it has no torch"), ("2.9.1+cpu", "its torch is 2.9.1+cpu")]
)
def test_without_a_torch_that_serves_there_is_a_venv(tmp_path: Path, torch: str | None, reason: str) -> None:
    text = choose(tmp_path, torch)
    assert kind(text) == "venv"
    assert reason in text


def test_an_environment_without_pip_is_left_alone(tmp_path: Path) -> None:
    assert "but no pip" in choose(tmp_path, "2.13.0", pip=False)


def test_a_managed_python_lends_its_torch(tmp_path: Path) -> None:
    text = choose(tmp_path, "2.13.0", managed=True, in_venv=False)
    assert kind(text) == "inherit"
    assert "managed by the system" in text


def test_an_environment_that_cannot_be_written_lends_its_torch(tmp_path: Path) -> None:
    text = choose(tmp_path, "2.13.0", writable=False, in_venv=False)
    assert kind(text) == "inherit"
    assert "pip may not write to it" in text


def test_a_venv_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    """A second venv on top of it would see the packages of its base, not its own."""
    assert kind(choose(tmp_path, "2.13.0", writable=False)) == "venv"


def test_the_key_changes_with_torch(tmp_path: Path) -> None:
    keys = set()
    for torch in ("2.12.0", "2.13.0", "2.13.0+cpu"):
        (tmp_path / torch).mkdir()
        keys.add(choose(tmp_path / torch, torch).split()[1])
    assert len(keys) == 3
