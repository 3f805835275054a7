"""Runs the CUDA kernels of ops on the CPU, over the ops' sample inputs, and compares them with the reference.

    python tests/cuda_on_cpu/run.py [OP ...] [--sample TEXT] [--setting N ...] [--launch SETTINGS ...]

In this process backend "triton" means the CUDA kernels, as build.py compiles them. Prints one line for each sample that
fails and, last, a JSON object: {"failures": [...], "runs": ..., "launches": ..., "kernels": [those that ran]}.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "tests" / "ops")]

from agreement import assert_agrees, results  # noqa: E402

import build  # noqa: E402
from robustfast.ops import OPS, backend  # noqa: E402
from robustfast.ops.backend import Op, Sample  # noqa: E402


class Emulator:
    """The compiled kernels and what they have done so far."""

    def __init__(self, names: list[str], csrc: Path) -> None:
        path = build.library(names, csrc)
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(str(path))
        self._library.cuda_on_cpu_count.restype = ctypes.c_int64
        self._library.cuda_on_cpu_kernels.restype = ctypes.c_char_p
        # Every backend runs: the one called triton is the kernels.
        backend._missing = lambda name, backend: None

    def set(self, capability: int, order: int, numbers_on_host: bool) -> None:
        """How the next launches run: device, order of threads (0 first to last, 1 last to first, else by chance)."""
        self._library.cuda_on_cpu_settings(capability, order, numbers_on_host)

    @property
    def launches(self) -> int:
        return self._library.cuda_on_cpu_count(0)

    @property
    def accesses(self) -> int:
        """Loads and stores of shared and global memory, each of which was looked at."""
        return self._library.cuda_on_cpu_count(1)

    @property
    def clusters(self) -> int:
        """Launches whose blocks came in clusters."""
        return self._library.cuda_on_cpu_count(2)

    @property
    def kernels(self) -> list[str]:
        return self._library.cuda_on_cpu_kernels().decode().split()


def strided(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, 3)], dim=-1)[..., 0]


def late(t: Tensor) -> Tensor:
    """Starts one element into its storage: no vector load is aligned."""
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape).copy_(t)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def gradients_of(
    function: Callable[..., Any], takes: Callable[[Tensor], bool]
) -> Callable[..., list[Tensor]]:
    """Of `function`'s arguments: the gradients of those that take one, under fixed gradients of its results."""

    def gradients(*args: Any, **kwargs: Any) -> list[Tensor]:
        def leaf(t: Tensor) -> Tensor:
            return t.detach().clone().requires_grad_(takes(t))

        args, kwargs = tree_map_only(Tensor, leaf, (args, kwargs))
        outs = [t for t in tree_leaves(function(*args, **kwargs)) if t.requires_grad]
        if not outs:
            return []
        generator = torch.Generator().manual_seed(0)
        # Eighths: every dtype holds them.
        given = [torch.randint(-8, 9, t.shape, generator=generator).to(t.dtype) / 8 for t in outs]
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
        found = torch.autograd.grad(outs, leaves, given, allow_unused=True)
        return [t for t in found if t is not None]

    return gradients


def check_gradients(op: Op, sample: Sample) -> None:
    floating = lambda t: t.dtype.is_floating_point  # noqa: E731
    function = gradients_of(op.function, floating)
    try:
        expected = results(function, "reference", *sample.args, **sample.kwargs)
    except (RuntimeError, ValueError, TypeError):
        # Some argument takes no gradient; those of images and logits do.
        function = gradients_of(op.function, lambda t: floating(t) and t.dim() > 1)
        expected = results(function, "reference", *sample.args, **sample.kwargs)
    if not expected:
        return None
    got = results(function, "triton", *sample.args, **sample.kwargs)
    if all(t.isfinite().all() for t in expected):
        rule = Sample(f"gradients of {sample.label}", sample.args, sample.kwargs, exact=False)
        return assert_agrees(function, rule, got)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    return None


def check_layouts(op: Op, sample: Sample) -> None:
    expected = results(op.function, "reference", *sample.args, **sample.kwargs)
    for lay in (strided, late, channels_last):
        args, kwargs = tree_map_only(Tensor, lay, (sample.args, sample.kwargs))
        for ours, theirs in zip(results(op.function, "triton", *args, **kwargs), expected, strict=True):
            told = partial("{}: {}".format, lay.__name__)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=told)


def check(op: Op, sample: Sample, first: bool) -> None:
    assert_agrees(op.function, sample, results(op.function, "triton", *sample.args, **sample.kwargs))
    if first:
        check_layouts(op, sample)
    check_gradients(op, sample)


# Device, order of the threads (0: first to last, 1: last to first, more: by chance).
SETTINGS = ((90, 0), (90, 1), (80, 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="which ops; all where none is named")
    parser.add_argument("--sample", default="", help="only samples whose label holds this")
    parser.add_argument("--setting", type=int, nargs="*", default=[0], help=f"which of {SETTINGS}")
    parser.add_argument("--launch", nargs="*", help="values of ROBUSTFAST_LAUNCH, one after the other")
    parser.add_argument(
        "--together", action="store_true", help="compile all sources, not those of the ops alone"
    )
    parser.add_argument("--csrc", type=Path, default=build.ROOT / "csrc", help="folder of the sources")
    given = parser.parse_args()
    unknown = set(given.ops) - set(OPS)
    if unknown:
        parser.error(f"no op is called {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    torch.set_num_threads(1)
    # What is not written is nan, or the largest integer.
    torch.use_deterministic_algorithms(True)
    emulator = Emulator([] if given.together else given.ops, given.csrc)
    failures: list[str] = []
    runs = 0

    def failed(what: str) -> None:
        failures.append(what)
        print(what, flush=True)

    for op in (OPS[name] for name in given.ops or OPS):
        print(op.name, flush=True)
        samples = [s for s in op.samples(torch.device("cpu")) if given.sample in s.label]
        for number, sample in enumerate(samples):
            for setting, launch in product(given.setting, given.launch or [None]):
                if launch is not None:
                    os.environ["ROBUSTFAST_LAUNCH"] = launch
                # Numbers lie in host and in device memory by turns.
                emulator.set(*SETTINGS[setting], numbers_on_host=(number + setting) % 2 == 0)
                before, runs = emulator.launches, runs + 1
                told = ", ".join(filter(None, (op.name, sample.label, f"{SETTINGS[setting]}", launch)))
                try:
                    check(op, sample, first=number == 0)
                except (AssertionError, RuntimeError) as error:
                    failed(f"{told}: {' '.join(str(error).split()) or repr(error)}")
                values = results(op.function, "reference", *sample.args, **sample.kwargs)
                if emulator.launches == before and any(t.numel() for t in values):
                    failed(f"{told}: no kernel ran")
    told = {"failures": failures, "runs": runs, "launches": emulator.launches, "clusters": emulator.clusters}
    print(json.dumps(told | {"accesses": emulator.accesses, "kernels": emulator.kernels}))


if __name__ == "__main__":
    main()
