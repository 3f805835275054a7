"""Every Triton kernel, with every signature that the sample inputs give it, compiled for GPUs that are not here."""

from __future__ import annotations

import json
import os
import re

import pytest
from warm import Warm

from robustfast.ops import OPS

pytest.importorskip("triton", reason="triton is not installed")

ARCHITECTURES = (80, 90, 100)

# In a process of its own: Triton decides at import whether it interprets. Launches are recorded instead of run, so that
# the arguments are those of real calls.
COMPILE = """
import json, subprocess, sys, tempfile
from pathlib import Path
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from robustfast.ops import OPS, backend

name, architectures = sys.argv[1], [int(a) for a in sys.argv[2:]]
launches = {}
OPTIONS = ("enable_fp_fusion", "num_warps", "num_stages", "maxnreg")

def signature_of(fn, args, kwargs):
    bound = dict(zip(fn.arg_names, args)) | {k: v for k, v in kwargs.items() if k not in OPTIONS}
    types, constants, attrs = {}, {}, {}
    for i, p in enumerate(fn.params):
        value = bound[p.name]
        if p.is_constexpr:
            types[p.name], constants[p.name] = "constexpr", value
        elif value is None:
            types[p.name], constants[p.name] = "constexpr", None
        elif isinstance(value, torch.Tensor):
            kind = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16", "bool": "i1",
                    "int64": "i64", "int32": "i32", "uint8": "u8"}[str(value.dtype).split(".")[1]]
            types[p.name] = "*" + kind
            attrs[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            types[p.name] = "i1"
        elif isinstance(value, int):
            types[p.name] = p.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64")
        else:
            types[p.name] = p.annotation_type or "fp32"
    return types, constants, attrs

def record(self, *args, grid, warmup, **kwargs):
    types, constants, attrs = signature_of(self, args, kwargs)
    options = {key: kwargs[key] for key in OPTIONS if key in kwargs}
    # Of block sizes the largest: it needs the most registers.
    key = self.__name__, str(types), str({k: v for k, v in constants.items() if k != "BLOCK"})
    if key not in launches or constants.get("BLOCK", 0) > launches[key][2].get("BLOCK", 0):
        launches[key] = (self, types, constants, attrs, options)

JITFunction.run = record
backend._missing = lambda name, backend: None   # no device is here: launches are only recorded
for sample in OPS[name].samples(torch.device("cpu")):
    tensors = [
        t.detach().requires_grad_(t.dtype.is_floating_point) if isinstance(t, torch.Tensor) else t
        for t in sample.args
    ]
    with backend.use_backend("triton"):
        out = OPS[name].function(*tensors, **sample.kwargs)
        outs = [t for t in (out if isinstance(out, tuple) else [out]) if t.requires_grad and t.numel()]
        if outs:
            sum(t.sum() for t in outs).backward()

tools = Path(triton.__file__).parent / "backends/nvidia/bin"
# What Triton itself runs: its assembler for Hopper and older knows no Blackwell.
ASSEMBLER = {80: ("ptxas", "sm_80"), 90: ("ptxas", "sm_90a"), 100: ("ptxas-blackwell", "sm_100a")}

def assembled(ptx, arch, options):
    program, name = ASSEMBLER[arch]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tools / program, "-v", f"-arch={name}", file.name, "-o", "/dev/null"]
        command += [] if options.get("enable_fp_fusion", True) else ["--fmad=false"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

seen = {}
for (kernel, *_), (fn, types, constants, attrs, options) in launches.items():
    # Every signature for one architecture, the first of each kernel for all: the others differ in types alone.
    for arch in architectures if kernel not in seen else [90]:
        compiled = triton.compile(
            ASTSource(fn, types, constants, attrs), target=GPUTarget("cuda", arch, 32), options=options
        )
        assert compiled.asm["cubin"]
        build = {"arch": arch, "what": f"sm_{arch} {types} {constants}"}
        build["assembler"] = assembled(compiled.asm["ptx"], arch, options)
        seen.setdefault(kernel, []).append(build)
print(json.dumps(seen))
"""


@pytest.mark.parametrize("op", OPS)
def test_compiles_without_spills(warm: Warm, op: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = warm.run("-c", COMPILE, op, *map(str, ARCHITECTURES), env=environment)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert kernels
    for name, builds in kernels.items():
        assert {build["arch"] for build in builds} == set(ARCHITECTURES), name
        for build in builds:
            told = f"{name}, {build['what']}:\n{build['assembler']}"
            entries = re.findall(r"Compiling entry function '(\w+)'", build["assembler"])
            spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", build["assembler"])
            assert entries == [name], f"not the one kernel was assembled: {told}"
            assert spills, f"the assembler did not report spills: {told}"
            assert set(spills) == {("0", "0")}, f"registers spill: {told}"
