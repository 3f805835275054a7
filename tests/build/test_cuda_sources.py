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
# Each source alone for one of them, as a build compiles it, and all in one translation unit for the others: most of the
# time goes into headers that every one of them reads.
ALONE, TOGETHER = "sm_90", ("sm_80", "sm_100")


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


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source: Path, tmp_path: Path) -> None:
    # The code of the host too: nvcc hands g++ something else than what stands in the source.
    assert compiled(source, ALONE, tmp_path, to="-c")


@pytest.mark.parametrize("architecture", TOGETHER)
def test_all_compile_without_spills(architecture: str, tmp_path: Path) -> None:
    text = "".join(in_a_namespace(source) for source in SOURCES)
    (tmp_path / "all.cu").write_text(text)
    kernels = compiled(tmp_path / "all.cu", architecture, tmp_path)
    # As names are mangled: pgd_step_cuda is not found in apgd_step_cuda.
    for name in (f"{len(source.stem)}{source.stem}" for source in SOURCES):
        assert any(name in kernel for kernel in kernels), f"no kernel of {name}: {kernels}"


def in_a_namespace(source: Path) -> str:
    """A source with a named namespace where it has an unnamed one, so that it can stand in a file with others."""
    text = source.read_text()
    opened, registered = "\nnamespace robustfast {\nnamespace {\n", "TORCH_BOX(&robustfast::"
    assert text.count(opened) == 1, source
    assert registered in text, source
    text = text.replace(opened, opened.replace("namespace {", f"namespace {source.stem} {{"))
    return f'#line 1 "{source}"\n' + text.replace(registered, f"{registered}{source.stem}::") + "\n"


def compiled(source: Path, architecture: str, tmp_path: Path, *, to: str = "-cubin") -> list[str]:
    """The names of the kernels that nvcc makes of a source, none of which spills; `to` says what it writes."""
    nvcc, known = toolkit()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, to, "-std=c++20", f"-arch={architecture}", "-O3", "-fmad=false", "-Xptxas", "-v"]
    command += [
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{ROOT / 'csrc'}",
        f"-I{include}",
    ]
    command += ["-o", str(tmp_path / "kernels"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", result.stderr)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert kernels, f"no kernel was compiled:\n{result.stderr}"
    assert len(spills) >= len(kernels), f"ptxas did not report on every kernel:\n{result.stderr}"
    assert set(spills) == {("0", "0")}, f"registers spill:\n{result.stderr}"
    return kernels
