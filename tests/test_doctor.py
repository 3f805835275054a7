"""The doctor names every op, package and tool; for what is missing it says why and how to mend it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robustfast import doctor
from robustfast.ops import OPS, backends

PACKAGES = ("torch", "triton", "nvidia-dali", "apex", "ninja", "pytest-benchmark", "tyro")
MACHINE = ("C++ compiler", "nvcc", "CUDA device")


def named(name: str) -> doctor.Finding:
    (finding,) = (found for found in doctor.findings() if found.name.startswith(name))
    return finding


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch can be found, and no program."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "torch" else None)
    monkeypatch.setattr("shutil.which", lambda name: None)


@pytest.mark.parametrize("name", PACKAGES + MACHINE)
def test_everything_is_found_or_mended(name: str) -> None:
    finding = named(name)
    assert finding.purpose
    assert bool(finding.found) != bool(finding.why)


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("name", [*PACKAGES[1:], "C++ compiler", "nvcc"])
def test_what_is_missing_has_a_reason_and_a_command(name: str) -> None:
    finding = named(name)
    assert finding.found is None
    assert finding.why
    if sys.platform == "linux":
        assert any(word in finding.mend for word in ("pip install", "apt-get install", "CUDA_HOME"))


@pytest.mark.usefixtures("without")
@pytest.mark.parametrize("name", ["triton", "nvidia-dali"])
def test_systems_other_than_linux_go_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "there is no build of it" in named(name).why
    assert named(name).mend == ""


def test_dali_fits_the_cuda_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert named("nvidia-dali").name == "nvidia-dali-cuda120"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert named("nvidia-dali").name == "nvidia-dali-cuda130"


def test_the_other_project_called_apex_is_not_taken_for_nvidias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    importlib.invalidate_caches()
    finding = named("apex")
    assert finding.found is None
    assert "without NVIDIA's CUDA extension amp_C" in finding.why
    assert finding.mend.startswith("pip uninstall apex")
    (tmp_path / "amp_C.py").touch()
    importlib.invalidate_caches()
    assert named("apex").found


def test_a_compiler_is_the_one_that_cxx_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert named("C++ compiler").why == f"{tmp_path / 'no-compiler'} is not on PATH"


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_a_missing_device_is_told_apart_from_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert "is built without CUDA" in named("CUDA device").why
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    assert "sees no device" in named("CUDA device").why
    assert "nvidia-smi" in named("CUDA device").mend


def test_the_report_has_every_op_backend_and_reason() -> None:
    text = doctor.report()
    for op, states in backends().items():
        assert f"  {op} " in text
        for backend, reason in states.items():
            assert backend in text
            assert reason is None or reason in text
    assert all(name in text for name in PACKAGES + MACHINE)


def test_the_command_prints_it_and_ends_well() -> None:
    environment = {**os.environ, "ROBUSTFAST_BACKEND": "reference"}
    command = [sys.executable, "-m", "robustfast.doctor"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "backend in force: reference" in result.stdout
    assert all(op in result.stdout for op in OPS)


def test_help_says_how_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m robustfast.doctor\n")


def test_an_argument_is_refused_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--foo", "bar"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: doctor takes no arguments, got --foo bar\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_a_missing_cuda_backend_comes_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason() -> str:
        (one,) = {states["cuda"] for states in backends().values()}
        assert one
        return one

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}" in reason()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr("robustfast.ops.backend._LIBRARY_MISSING", None)
    monkeypatch.setattr("robustfast.ops.backend._has_kernel", lambda name, key: key == "CPU")
    assert reason().endswith("CUDA_HOME=/usr/local/cuda pip install --no-build-isolation --no-deps -e .")
    monkeypatch.setattr("robustfast.ops.backend._has_kernel", lambda name, key: True)
    assert reason().endswith("run: nvidia-smi")
