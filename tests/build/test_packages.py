"""Editable installs, source distributions and wheels hold everything, and run without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from robustfast.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("csrc", "docs", "kernels", "robustfast", "tests", "bench", ".ci")
FILES = ("LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml", "setup.py")
NOTHING_BUILT = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")

STEP = """
import torch, robustfast, robustfast.kernels
from robustfast.ops import backends, pgd_step
x = torch.tensor([[0.2, 0.5]])
out = pgd_step(x, torch.tensor([[1.0, -1.0]]), x, step_size=0.1, eps=0.05)
assert torch.allclose(out, torch.tensor([[0.25, 0.45]])), out
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "MAX_JOBS": "2", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a fresh copy of the sources, nothing built."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("checkout")
        for part in PARTS:
            shutil.copytree(ROOT / part, folder / part, ignore=NOTHING_BUILT)
        for file in FILES:
            shutil.copy(ROOT / file, folder)
        return folder

    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new environment that sees the packages of this one, but not what is installed editable in it."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    site = Path(sysconfig.get_path("purelib", "posix_prefix", {"base": str(tmp_path / "env")}))
    folders = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    # A folder named in a .pth is put on sys.path, but the .pth files inside it are not read.
    (site / "packages_of_the_tests.pth").write_text("\n".join(folders) + "\n")
    return tmp_path / "env" / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(checkout: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel with the compiled library, built from the source distribution and from nothing else."""
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out, cwd=checkout())
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(out)
    (sources,) = (path for path in out.iterdir() if path.is_dir())
    # The CUDA kernels take minutes and are compiled in test_cuda_sources.py; here it is about what a wheel holds.
    build_wheel(sources, out, ROBUSTFAST_CUDA="0")
    return next(out.glob("*.whl"))


def build_wheel(sources: Path, out: Path, **environment: str) -> str:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", out)
    return run(sys.executable, "-m", "pip", "wheel", "-v", *options, ".", cwd=sources, **environment)


def install(python: Path, *what: object, cwd: Path, **environment: str) -> None:
    options = (
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        "--no-warn-script-location",
    )
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, *what, cwd=cwd, **environment)


def test_an_editable_install_finds_the_kernels(
    checkout: Callable[[], Path], python: Path, tmp_path: Path
) -> None:
    sources = checkout()
    install(python, "-e", sources, cwd=tmp_path, ROBUSTFAST_BUILD="0")
    place = "print(robustfast.__file__, robustfast.kernels.__file__)"
    found = run(python, "-c", STEP + place, cwd=tmp_path).split()
    assert found == [str(sources / "robustfast" / "__init__.py"), str(sources / "kernels" / "__init__.py")]


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_a_wheel_from_the_source_distribution_runs_compiled(
    wheel: Path, python: Path, tmp_path: Path
) -> None:
    assert "cp310-abi3" in wheel.name  # one file for every Python since 3.10
    names = zipfile.ZipFile(wheel).namelist()
    for path in [*(ROOT / "robustfast").rglob("*.py"), ROOT / "robustfast" / "py.typed"]:
        assert str(path.relative_to(ROOT)) in names
    for path in (ROOT / "kernels").rglob("*.py"):
        assert f"robustfast/{path.relative_to(ROOT)}" in names
    assert "robustfast/_C.so" in names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "csrc/"))]

    install(python, wheel, cwd=tmp_path)
    compiled = "print([op for op, states in backends().items() if states['cpp']])"
    assert run(python, "-c", STEP + compiled, cwd=tmp_path).strip() == "[]"


def test_without_a_compiler_it_installs_and_runs_on_the_reference(
    checkout: Callable[[], Path], python: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dist"
    said = build_wheel(checkout(), out, CXX=str(tmp_path / "no-compiler"))
    assert "everything runs on the reference path: there is no C++ compiler" in said
    (wheel,) = out.glob("*.whl")
    assert "robustfast/_C.so" not in zipfile.ZipFile(wheel).namelist()

    install(python, wheel, cwd=tmp_path)
    run(python, "-c", STEP, cwd=tmp_path)
    told = run(python, "-m", "robustfast.doctor", cwd=tmp_path, PATH=str(tmp_path))
    assert re.search(r"cpp \(every op\): robustfast/_C\.so is not built.*run: pip install", told)
    assert all(f"  {op} " in told for op in OPS)
    assert "missing: c++ is not on PATH" in told


def test_a_compiler_that_fails_leaves_no_old_library(checkout: Callable[[], Path], tmp_path: Path) -> None:
    sources = checkout()
    for page in (sources / "csrc").glob("*_cpu.cpp"):
        page.unlink()
    (sources / "csrc" / "broken_cpu.cpp").write_text("int broken(")
    (sources / "robustfast" / "_C.so").write_text("of older sources")
    build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    assert "the library is left out" in run(*build, cwd=sources, ROBUSTFAST_CUDA="0")
    assert not (sources / "robustfast" / "_C.so").exists()

    required = {**os.environ, "ROBUSTFAST_CUDA": "0", "ROBUSTFAST_BUILD": "required"}
    result = subprocess.run(build, cwd=sources, env=required, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "robustfast: the library cannot be built" in result.stderr
