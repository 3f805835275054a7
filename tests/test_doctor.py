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
MACHINE = ("C++ compiler", "nvcc", "CPU", "CPU threads", "memory", "CUDA device")
PRECISION = ("fp32 on cpu", "bf16 on cpu", "fp16 on cpu")
PROCESSES = ("gloo", "nccl", "processes here")


def named(name: str) -> doctor.Finding:
    found = {finding.name: finding for finding in doctor.findings()}
    return found.get(name) or next(finding for key, finding in found.items() if key.startswith(name))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch can be found, and no program."""
    importlib.import_module("robustfast.training.optimizers")  # else its own find_spec would stay this one
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "torch" else None)
    monkeypatch.setattr("shutil.which", lambda name: None)


@pytest.mark.parametrize("name", PACKAGES + MACHINE + PRECISION + PROCESSES)
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
    assert "not NVIDIA's but the unrelated project" in finding.why
    assert finding.mend.startswith("pip uninstall apex && APEX_CPP_EXT=1")
    # NVIDIA's compiled module beside another project's package is still no NVIDIA apex.
    (tmp_path / "amp_C.py").touch()
    importlib.invalidate_caches()
    assert named("apex").found is None
    (tmp_path / "apex" / "optimizers").mkdir()
    (tmp_path / "apex" / "optimizers" / "__init__.py").touch()
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "amp_C", raising=False)
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


def test_a_precision_that_cannot_be_computed_comes_with_one_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        raise RuntimeError("no such arithmetic")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    assert named("fp32 on cpu").found
    finding = named("bf16 on cpu")
    assert finding.found is None
    assert "no such arithmetic" in finding.why
    assert finding.mend == "--precision fp32"


@pytest.mark.parametrize(
    ("flags", "precision", "words"),
    [
        ("avx2 avx512f avx512_bf16", "bf16", "natively (AVX-512 BF16)"),
        ("avx2 avx512f avx512_bf16 amx_bf16", "bf16", "natively (AVX-512 BF16, AMX)"),
        ("avx2 avx512_bf16", "fp16", "slower than fp32"),
        ("avx2 avx512_fp16", "fp16", "natively (AVX-512 FP16)"),
        ("fp asimd asimdhp", "fp16", "natively (Arm FP16)"),
        ("avx2", "bf16", "slower than fp32"),
    ],
)
def test_a_precision_is_native_where_the_processor_has_its_arithmetic(
    flags: str, precision: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(doctor, "_processor", lambda: ("a processor", frozenset(flags.split())))
    assert words in doctor._speed(precision, "cpu")


def test_processes_of_torchrun_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert "not under torchrun" in named("processes here").found
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "number 1 of 4" in named("processes here").found


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_a_torch_without_messages_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, f"is_{name}_available", lambda: False)
    assert "without it" in named(name).why
    assert "pip install --force-reinstall torch" in named(name).mend


def test_dali_is_tried_and_not_only_found(monkeypatch: pytest.MonkeyPatch) -> None:
    if not named("nvidia-dali").found:
        pytest.skip("needs DALI, which is not installed")
    assert "run on cpu" in named("DALI operators").found

    def fail(kind: str) -> None:
        raise RuntimeError("libcuda is too old\nin two lines")

    monkeypatch.setattr(doctor, "_flip", fail)
    assert named("DALI operators").why == "its cpu operators fail (libcuda is too old in two lines)"
    assert named("DALI operators").mend.startswith("pip install nvidia-dali")


def test_it_runs_where_nothing_of_training_is_installed() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('tyro', 'rich', 'matplotlib', 'nvidia.dali', 'tensorboard')));"
        "from robustfast.doctor import main; sys.exit(main([]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "training itself does not import" in result.stdout


def test_the_report_has_every_op_backend_and_reason() -> None:
    text = doctor.report()
    for op, states in backends().items():
        assert f"  {op} " in text
        for backend, reason in states.items():
            assert backend in text
            assert reason is None or reason in text
    assert all(name in text for name in PACKAGES + MACHINE + PRECISION + PROCESSES)


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
