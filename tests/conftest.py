"""What every test stands on: one thread, Triton's interpreter where there is no GPU, the real data where it lies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for warm.py, beside this file

from warm import Warm

ROOT = Path(__file__).resolve().parent.parent
HAS_GPU = torch.cuda.is_available()

# Triton reads it at its import, so it is set before any test is. Where there is a GPU, kernels are compiled for it.
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Several workers share the cores; and one thread sums in one order.
torch.set_num_threads(1)

# A slow or busy machine is not a defect. Continuous integration draws the same examples every time.
hypothesis.settings.register_profile("robustfast", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("robustfast")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def test_data_dir() -> Path:
    """Folder with the real data sets (MNIST's files under mnist/); the test is skipped where there is none."""
    folder = Path(os.environ.get("ROBUSTFAST_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs real data, and {folder} is no folder; ROBUSTFAST_TEST_DATA names another")
    return folder


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """torchrun(N, "program.py" or "-m", "module", arguments...): N processes on this machine, on a port of their own.

    They must succeed, unless `check` is False; `restarts` is --max-restarts.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch is built without gloo")

    def run(
        processes: int, *command: str | Path, restarts: int = 0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
        done = subprocess.run(
            [*launcher, *options, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts commands without the seconds that imports take."""
    if not (hasattr(os, "fork") and hasattr(socket, "SOCK_SEQPACKET")):
        pytest.skip("commands are forked, and this system cannot")
    program = Warm()
    yield program
    program.close()
