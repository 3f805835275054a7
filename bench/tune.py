"""Try launch parameters of pgd_step and affine_relu on this GPU: `python bench/tune.py`, about ten minutes.

A sweep varies a few parameters that decide together, on the cases that they matter for. Each setting must first give
what the reference gives; then all are timed, in turn forwards and backwards. Best is the least mean over the cases of
the time as a multiple of the least there. Parameters of CUDA kernels stand in csrc/*_cuda.cu as
launch_setting("NAME", VALUE), those of Triton kernels in the LAUNCH of their module. What is measured goes to
bench/results/launch/DEVICE.json; tests/build/test_launch.py fails while the sources say otherwise.

On a CPU (--device cpu, with TRITON_INTERPRET=1) Triton's sweeps run interpreted on small images: that checks every
setting, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hardware import ROOT, hardware
from measure import graphed_seconds, interleaved

sys.path.append(str(ROOT / "tests" / "ops"))

from agreement import assert_agrees, results

from robustfast.errors import UserError
from robustfast.ops import affine_relu, backends, pgd_step, use_backend
from robustfast.ops.backend import Sample

RESULTS = ROOT / "bench" / "results" / "launch"
# What differs by less is noise: no reason to change a constant.
TOLERANCE = 1.03
# Calls in a graph that is timed.
CALLS = 20

Values = dict[str, int]


@dataclass(frozen=True)
class Case:
    """One call: a function of `robustfast.ops`, and the sample input that it is made with."""

    function: Callable[..., Any]
    sample: Sample

    @property
    def label(self) -> str:
        return self.sample.label

    def run(self) -> Any:
        out = self.function(*self.sample.args, **self.sample.kwargs)
        x = self.sample.args[0]
        return torch.autograd.grad(out, x, self.sample.args[0].detach()) if x.requires_grad else out


@dataclass(frozen=True)
class Sweep:
    """The values to try of parameters that decide together, and the names of the cases that they matter for."""

    op: str
    backend: str
    tried: Mapping[str, tuple[int, ...]]
    cases: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.op} {self.backend} {' '.join(self.tried)}"

    def settings(self) -> list[Values]:
        return [
            dict(zip(self.tried, values, strict=True)) for values in itertools.product(*self.tried.values())
        ]


SWEEPS = (
    Sweep(
        "pgd_step",
        "cuda",
        {"pgd_step_linf_large_threads": (128, 256, 512), "pgd_step_linf_large_vectors": (1, 2, 4)},
        ("linf-224", "linf-224-bf16"),
    ),
    Sweep(
        "pgd_step",
        "cuda",
        {"pgd_step_linf_small_threads": (128, 256, 512), "pgd_step_linf_small_vectors": (1, 2, 4)},
        ("linf-32", "linf-32-bf16"),
    ),
    # 0: two vectors a thread, so half the threads.
    Sweep("pgd_step", "cuda", {"pgd_step_one_vector_elements": (0, 4096)}, ("l2-32", "l2-32-bf16", "l1-32")),
    # 0: in shared memory.
    Sweep("pgd_step", "cuda", {"pgd_step_two_vectors_elements": (0, 6144)}, ("l2-44", "l1-44")),
    Sweep(
        "pgd_step",
        "cuda",
        {"pgd_step_held_threads": (128, 256, 512), "pgd_step_held_blocks": (8, 16)},
        ("l2-224", "l2-224-bf16", "l1-224"),
    ),
    Sweep(
        "pgd_step",
        "triton",
        {"linf_block": (1024, 2048, 4096), "linf_warps": (4, 8)},
        ("linf-32", "linf-224", "linf-224-bf16"),
    ),
    Sweep("pgd_step", "triton", {"held_elements_a_thread": (4, 8, 16)}, ("l2-32", "l2-32-bf16", "l1-32")),
    Sweep(
        "pgd_step",
        "triton",
        {"split_block": (1024, 2048), "split_warps": (4, 8), "split_passes": (4, 8, 16)},
        ("l2-224", "l2-224-bf16"),
    ),
    Sweep(
        "affine_relu",
        "cuda",
        {"affine_relu_threads": (128, 256, 512), "affine_relu_vectors": (1, 2, 4)},
        ("64x32x32", "512x4x4", "64x32x32-residual"),
    ),
    Sweep(
        "affine_relu",
        "triton",
        {"block": (128, 256, 512), "warps": (4, 8)},
        ("64x32x32", "512x4x4", "64x32x32-residual"),
    ),
)

RULES: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf", "eps": 8 / 255, "step_size": 2 / 255},
    "l2": {"norm": "l2", "eps": 0.5, "step_size": 0.1},
    "l1": {"norm": "l1", "eps": 12.0, "step_size": 1.0},
}
SIZES = {"32": (128, 3, 32, 32), "44": (128, 3, 44, 44), "224": (256, 3, 224, 224)}
# Interpreted, a sample of 40 x 40 takes the way of larger ones.
SMALL_SIZES = {"32": (2, 3, 16, 16), "44": (2, 3, 44, 44), "224": (1, 3, 40, 40)}


def case(op: str, name: str, device: torch.device) -> Case:
    """The case of that name, as Sweep.cases has them; small on a CPU."""
    generator = torch.Generator(device).manual_seed(0)
    small = device.type == "cpu"

    def rand(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    if op == "affine_relu":
        shape = (4, 16, 8, 8) if small else (128, *map(int, name.removesuffix("-residual").split("x")))
        images = [
            (rand(shape) - 0.5).bfloat16().contiguous(memory_format=torch.channels_last) for _ in range(2)
        ]
        rule: dict[str, Any] = {"scale": rand(shape[1:2]) + 0.5, "shift": rand(shape[1:2]) - 0.5}
        if name.endswith("-residual"):
            rule["residual"] = images[1]
        return Case(affine_relu, Sample(name, (images[0].requires_grad_(),), rule, exact=False))
    norm, size, *half = name.split("-")
    x, noise, grad = (rand((SMALL_SIZES if small else SIZES)[size]) for _ in range(3))
    grad = (grad - 0.5).bfloat16() if half else grad - 0.5
    x_adv = (x + (noise - 0.5) / 10).clamp(0, 1)
    rule = RULES[norm] | ({} if small else {"out": torch.empty_like(x)})
    return Case(pgd_step, Sample(name, (x_adv, grad, x), rule, exact=norm == "linf"))


def constants(op: str, backend: str) -> Values:
    """The launch parameters as the sources have them."""
    if backend == "cuda":
        source = (ROOT / "csrc" / f"{op}_cuda.cu").read_text()
        return {name: int(value) for name, value in re.findall(r'launch_setting\("(\w+)", (\w+)\)', source)}
    for statement in ast.parse((ROOT / "kernels" / f"{op}.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "LAUNCH":
            return dict(ast.literal_eval(statement.value))
    raise LookupError(f"kernels/{op}.py has no LAUNCH")


@contextmanager
def launched_with(sweep: Sweep, values: Values) -> Iterator[None]:
    """Kernels are launched with these parameters inside. `main` has seen to it that CUDA's are read anew each time."""
    with use_backend(sweep.backend):
        if sweep.backend == "cuda":
            os.environ["ROBUSTFAST_LAUNCH"] = ",".join(f"{name}={value}" for name, value in values.items())
            try:
                yield
            finally:
                os.environ["ROBUSTFAST_LAUNCH"] = ""
        else:
            table = importlib.import_module(f"robustfast.kernels.{sweep.op}").LAUNCH
            before = dict(table)
            table.update(values)
            try:
                yield
            finally:
                table.update(before)


def checked(sweep: Sweep, values: Values, cases: list[Case]) -> str | None:
    """None where every case agrees with the reference under these parameters, else what is wrong."""
    for one in cases:
        kwargs = {name: value for name, value in one.sample.kwargs.items() if name != "out"}
        sample = Sample(one.label, one.sample.args, kwargs, one.sample.exact)
        try:
            with launched_with(sweep, values):
                got = results(one.function, sweep.backend, *sample.args, **sample.kwargs)
            assert_agrees(one.function, sample, got)
        except (
            Exception
        ) as error:  # a launch that the device refuses, a wrong result: a setting to leave alone
            return f"{one.label}: {type(error).__name__}: {error}".splitlines()[0]
    return None


def seconds_of(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    if device.type == "cuda":
        taken = graphed_seconds(call, calls=CALLS)
        assert taken is not None
        return taken
    return interleaved({"call": call}, seconds=seconds, rounds=2)["call"].median


def run(sweep: Sweep, device: torch.device, seconds: float) -> dict[str, Any]:
    """The sweep's part of the result: each setting with its seconds by case or what is wrong with it, and the best."""
    cases = [case(sweep.op, name, device) for name in sweep.cases]
    rows: list[dict[str, Any]] = []
    for values in sweep.settings():
        wrong = checked(sweep, values, cases)
        rows.append({"values": values, "wrong": wrong} if wrong else {"values": values, "seconds": {}})
    right = [row for row in rows if "seconds" in row]
    for one in cases:
        taken: list[list[float]] = [[] for _ in right]
        order = list(enumerate(right))
        for index, row in [*order, *reversed(order)]:
            with launched_with(sweep, row["values"]):
                taken[index].append(seconds_of(one.run, device, seconds))
        for row, found in zip(right, taken, strict=True):
            row["seconds"][one.label] = sum(found) / len(found)
    for row, score in zip(right, scores(right), strict=True):
        row["score"] = score
    best = min(right, key=lambda row: row["score"])["values"] if right else None
    return {
        "op": sweep.op,
        "backend": sweep.backend,
        "parameters": list(sweep.tried),
        "settings": rows,
        "best": best,
    }


def scores(rows: list[dict[str, Any]]) -> list[float]:
    """Of each setting the geometric mean, over the cases, of its time as a multiple of the least; at best 1."""
    if not rows:
        return []
    least = {name: min(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    return [
        math.exp(sum(math.log(row["seconds"][name] / least[name]) for name in least) / len(least))
        for row in rows
    ]


def outdated(document: dict[str, Any]) -> list[str]:
    """A line for each sweep of a result whose best setting the sources have not, nor one as fast within TOLERANCE."""
    lines = []
    for sweep in document["sweeps"]:
        if sweep["best"] is None:
            continue
        here = constants(sweep["op"], sweep["backend"])
        now = {name: here.get(name) for name in sweep["parameters"]}
        found = {json.dumps(row["values"]): row.get("score", math.inf) for row in sweep["settings"]}
        best = found[json.dumps(sweep["best"])]
        if found.get(json.dumps(now), math.inf) > best * TOLERANCE:
            lines.append(
                f"{sweep['op']} on {sweep['backend']}: the sources have {now}, best is {sweep['best']}"
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cuda", "cpu"))
    parser.add_argument("--ops", nargs="+", default=["pgd_step", "affine_relu"], help="sweep these ops alone")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="on a CPU: time for each setting of a case"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of DEVICE.json")
    arguments = parser.parse_args()
    # From now on CUDA kernels read the variable at each launch.
    os.environ["ROBUSTFAST_LAUNCH"] = ""
    device = torch.device(arguments.device)
    document: dict[str, Any] = {"command": "python bench/tune.py", "hardware": hardware(device)}
    document |= {"tolerance": TOLERANCE, "sweeps": [], "not_run": {}}
    name = re.sub(r"\W+", "-", str(document["hardware"]["device"])).strip("-")
    path = arguments.out / f"{name}.json"
    for sweep in SWEEPS:
        if sweep.op not in arguments.ops or (sweep.backend == "cuda" and device.type == "cpu"):
            continue
        missing = backends()[sweep.op][sweep.backend]
        if missing is None:
            document["sweeps"].append(found := run(sweep, device, arguments.seconds))
            print(f"{sweep.label}: best {found['best']}", flush=True)
        else:
            document["not_run"][sweep.label] = missing
            print(f"{sweep.label}: not run: {missing}", flush=True)
        # After each sweep: what a run cut short has measured stays.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(json.dumps(document, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
    for line in outdated(document) if device.type == "cuda" else []:
        print(f"to change: {line}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
