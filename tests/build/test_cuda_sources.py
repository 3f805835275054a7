"""Every CUDA source compiles for every architecture we ship, without a GPU, and no kernel spills registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").glob("*_cuda.cu"))
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


@cache
def toolkit() -> tuple[str, set[str]]:
    """nvcc and the architectures it compiles for."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc, on PATH or under CUDA_HOME")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return nvcc, set(listed.split())


def test_there_are_sources() -> None:
    assert SOURCES


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, architecture: str, tmp_path: Path) -> None:
    nvcc, known = toolkit()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-cubin", "-std=c++20", f"-arch={architecture}", "-O3", "-fmad=false", "-Xptxas", "-v"]
    command += [
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{ROOT / 'csrc'}",
        f"-I{include}",
    ]
    command += ["-o", str(tmp_path / "kernels.cubin"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", result.stderr)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert kernels, f"no kernel was compiled:\n{result.stderr}"
    assert len(spills) >= len(kernels), f"ptxas did not report on every kernel:\n{result.stderr}"
    assert set(spills) == {("0", "0")}, f"registers spill:\n{result.stderr}"
