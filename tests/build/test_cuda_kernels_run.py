"""Every CUDA kernel runs on the CPU, over all sample inputs of its op: results, memory, barriers and races.

tests/cuda_on_cpu/ has the machine: threads are fibers, and each load and store is looked at before it is made.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from warm import Warm

from robustfast.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda_on_cpu"
FAULTY = HERE / "faulty.cu"

# Words of what is said of each faulty kernel.
FAULTS = {
    "reads_past_the_end": "reads 4 bytes at byte 256 of a tensor of 256 bytes",
    "writes_past_the_end": "writes 4 bytes at byte 256 of a tensor of 256 bytes",
    "writes_an_input": "writes to a tensor that the op only reads",
    "misaligned_vector": "not aligned to its size",
    "past_a_shared_array": "writes 4 bytes outside of any variable in shared memory",
    "uninitialised_shared": "reads shared memory that none has written",
    "no_barrier": "reads shared memory",
    "no_second_barrier": "no barrier lies between",
    "two_blocks_write_one_value": "no barrier lies between",
    "a_lane_is_missing": "ends where other lanes of its warp wait for it",
    "a_lane_goes_elsewhere": "waits",
    "a_mask_leaves_out_its_own": "whose mask leaves it out",
    "two_barriers": "while others are at the one in line",
    "too_many_threads": "__launch_bounds__",
    "a_block_ends_early": "shared memory of a block that has ended",
    "no_last_barrier_of_the_cluster": "no barrier of the cluster lies after another block's read",
    "a_copy_is_not_waited_for": "reads shared memory that none has written",
    "too_much_shared_memory": "more shared memory than a block has",
    "another_threads_variable": "a variable of another thread",
}

# Launch parameters with which small samples take the paths of large ones: two vectors a thread in registers, clusters
# of many blocks, sums of parts, several vectors a thread.
REGISTERS = "pgd_step_one_vector_elements=0"
SHARED = f"{REGISTERS},pgd_step_two_vectors_elements=0"
PATHS = (
    REGISTERS,
    f"{SHARED},pgd_step_held_bytes=400",
    f"{SHARED},pgd_step_held_blocks=0,pgd_step_split_elements=0",
    "pgd_step_linf_large=0,pgd_step_linf_large_vectors=4,pgd_step_linf_large_threads=32",
)


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_on_cpu_build", HERE / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.compiler() is None:
        pytest.skip("needs g++, on Linux")
    return module


@pytest.fixture(scope="module")
def faulty(build: ModuleType) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.compiled({FAULTY: FAULTY.read_text()}, {})))
    library.run_kernel.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]
    library.run_kernel.restype = ctypes.c_char_p
    return library


def run_kernel(library: ctypes.CDLL, name: str) -> tuple[str, list[float]]:
    x, out = torch.arange(64.0) + 1, torch.full((64,), -1.0)
    return library.run_kernel(name.encode(), x.data_ptr(), out.data_ptr()).decode(), out.tolist()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_machine_runs_correct_kernels(faulty: ctypes.CDLL, order: int) -> None:
    faulty.cuda_on_cpu_settings(90, order, 1)
    said, out = run_kernel(faulty, "correct")
    assert not said
    assert out[:4] == [sum(range(1, 65)), 64, 3, -1]
    said, out = run_kernel(faulty, "correct_cluster")
    assert not said
    assert out[:5] == [4, 3, 2, 1, -1]
    faulty.cuda_on_cpu_settings(90, 0, 1)


def test_every_faulty_kernel_has_its_words() -> None:
    assert set(re.findall(r"__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)", FAULTY.read_text())) == {
        *FAULTS,
        "correct",
        "correct_cluster",
    }


@pytest.mark.parametrize("kernel", FAULTS)
def test_the_machine_sees_a_fault(faulty: ctypes.CDLL, kernel: str) -> None:
    said, _ = run_kernel(faulty, kernel)
    assert f"faulty::{kernel}: thread (" in said
    assert FAULTS[kernel] in said
    # And goes on.
    assert not run_kernel(faulty, "correct")[0]


def ran(warm: Warm, *arguments: str) -> dict[str, Any]:
    done = warm.run(HERE / "run.py", *arguments, "--together")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["failures"], "\n".join(told["failures"])
    return told


def kernels_of(op: str) -> set[str]:
    text = (ROOT / "csrc" / f"{op}_cuda.cu").read_text()
    written = re.findall(r"__global__\s+void\s+(?:__launch_bounds__\([^()]*\)\s+)?(\w+)\(", text)
    assert len(written) == text.count("__global__") > 0, op
    return {f"{op}_cuda::{name}" for name in written}


def test_kernels_agree_with_the_reference(warm: Warm, build: ModuleType) -> None:
    """On a device with clusters and one without; threads first to last, last to first and by chance."""
    told = ran(warm, "--setting", "0", "1", "2")
    assert set(told["kernels"]) == set().union(*map(kernels_of, OPS))
    assert told["runs"] == 3 * sum(len(list(op.samples(torch.device("cpu")))) for op in OPS.values())


def test_paths_of_large_samples(warm: Warm, build: ModuleType) -> None:
    read = "".join(path.read_text() for path in (ROOT / "csrc").iterdir())
    for name in re.findall(r"(\w+)=", " ".join(PATHS)):
        assert f'launch_setting("{name}"' in read, f"nothing reads {name}"
    told = ran(warm, "pgd_step", "--launch", *PATHS)
    assert set(told["kernels"]) == kernels_of("pgd_step")
    assert told["clusters"]
