"""Whoever knows an op's name finds all of it by that name: `git ls-files | grep OP` prints exactly its pieces."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from robustfast.ops import OPS

ROOT = Path(__file__).resolve().parents[2]

PIECES = (
    "robustfast/reference/{op}.py",
    "robustfast/ops/{op}.py",
    "csrc/{op}.h",
    "csrc/{op}_cpu.cpp",
    "csrc/{op}_cuda.cu",
    "kernels/{op}.py",
    "tests/ops/test_{op}.py",
    "bench/bench_{op}.py",
)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip("needs a git checkout: it looks at tracked files")
    return result.stdout.splitlines()


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_exactly_its_pieces(op: str, tracked: list[str]) -> None:
    expected = {piece.format(op=op) for piece in PIECES}
    # Not preceded by a letter: pgd_step is not found in apgd_step.
    found = {path for path in tracked if re.search(rf"(?<![a-z0-9]){op}", path)}
    assert not expected - found, f"{op} lacks {sorted(expected - found)}: write them and `git add` them"
    assert not found - expected, f"{op} has pieces beyond the pattern: {sorted(found - expected)}"


def test_every_public_op_is_registered() -> None:
    pages = {path.stem for path in (ROOT / "robustfast" / "ops").glob("*.py")} - {
        "__init__",
        "backend",
        "sizes",
        "tensors",
    }
    assert pages == set(OPS)


@pytest.mark.parametrize("piece", ["csrc/{op}_cpu.cpp", "csrc/{op}_cuda.cu"])
def test_no_piece_is_without_an_op(piece: str, tracked: list[str]) -> None:
    pattern = re.compile(re.escape(piece).replace(re.escape("{op}"), r"(\w+)"))
    stems = {match[1] for path in tracked if (match := pattern.fullmatch(path))}
    assert not stems - set(OPS), f"no op is called {sorted(stems - set(OPS))}"
