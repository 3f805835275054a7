"""Rewrites CUDA sources so that g++ compiles them for the machine in machine.h, and compiles them.

What is rewritten: launches (``kernel<<<how>>>(arguments)``), shared variables, ``__launch_bounds__``, the library that
kernels are registered in, and how a tensor hands out its memory. Everything else is compiled as it stands, the host's
code with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# The triton library of schemas, which has its fake kernels and gradients like the others: in a process that loads the
# result, tensors on the CPU that are given to backend "triton" go to the CUDA kernels.
LIBRARY = "robustfast_triton, CPU"

INDICES = {
    "threadIdx": "::cuda_on_cpu::thread_index()",
    "blockIdx": "::cuda_on_cpu::block_index()",
    "blockDim": "::cuda_on_cpu::block_dim()",
    "gridDim": "::cuda_on_cpu::grid_dim()",
}
CLOSING = {")": "(", "]": "[", ">": "<"}


def opening(text: str, end: int) -> int:
    """Where the bracket opens that closes at text[end]."""
    stack = []
    for i in range(end, -1, -1):
        if text[i] in CLOSING and text[i - 1 : i + 1] != "->":
            stack.append(CLOSING[text[i]])
        elif stack and text[i] == stack[-1]:
            stack.pop()
            if not stack:
                return i
    raise ValueError(f"nothing opens what closes in: {text[max(0, end - 80) : end + 1]}")


def closing(text: str, start: int) -> int:
    """Where the round bracket closes that opens at text[start]."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"nothing closes what opens in: {text[start : start + 80]}")


def expression(text: str, end: int) -> int:
    """Where the name, call or bracketed expression starts that ends before text[end]: a.b->c[i](j)."""
    i = end
    while True:
        if text[i - 1] in CLOSING:
            i = opening(text, i - 1)
            if text[i] == "<" or re.match(r"[\w\])]", text[i - 1]):
                continue
        named = re.search(r"[\w:]+$", text[:i])
        i = named.start() if named else i
        if text[i - 1] == ".":
            i -= 1
        elif text[i - 2 : i] == "->":
            i -= 2
        else:
            return i


def rewritten(text: str, name: str = "") -> str:
    """A source called `name`, or a header, for machine.h; lines stay where they were."""
    text = re.sub(
        r"STABLE_TORCH_LIBRARY_IMPL\(robustfast, CUDA,", f"STABLE_TORCH_LIBRARY_IMPL({LIBRARY},", text
    )
    text = text.replace("torch::stable::accelerator::DeviceGuard", "::cuda_on_cpu::DeviceGuard")
    text = re.sub(r"(?<![\w.>])(threadIdx|blockIdx|blockDim|gridDim)\b", lambda name: INDICES[name[1]], text)
    text = kernels(text, name)
    text = launches(text)
    text = shared_variables(text)
    return tensors(text)


def kernels(text: str, source: str) -> str:
    """Each kernel says that it was entered, and what its launch bounds are."""
    found = re.compile(r"__global__\s+void\s+(?:__launch_bounds__(?=\())?")
    at = 0
    while match := found.search(text, at):
        at = match.end()
        bounds = ""
        if match[0].endswith("__launch_bounds__"):
            end = closing(text, at)
            bounds = ", " + text[at + 1 : end]
            # As many lines as before.
            text = text[: at - len("__launch_bounds__")] + "\n" * bounds.count("\n") + text[end + 1 :]
            at -= len("__launch_bounds__")
        name = re.compile(r"\s*(\w+)\s*").match(text, at)
        assert name, text[at : at + 80]
        body = text.index("{", closing(text, name.end())) + 1
        text = f'{text[:body]} ::cuda_on_cpu::entered("{source}::{name[1]}"{bounds});{text[body:]}'
    return text


def launches(text: str) -> str:
    """kernel<<<how>>>(arguments) becomes a call."""
    while (mark := text.find("<<<")) >= 0:
        end = len(text[:mark].rstrip())
        start = expression(text, end)
        how = text.index(">>>", mark)
        opened = how + 3
        closed = closing(text, opened)
        arguments = text[opened + 1 : closed]
        text = (
            f"{text[:start]}::cuda_on_cpu::launch(::cuda_on_cpu::launch_of({text[mark + 3 : how]}), "
            f"[&](const auto&... given) {{ {text[start:end]}(given...); }}, {text[end:mark]}{arguments}"
            f"{text[closed:]}"
        )
    return text


def shared_variables(text: str) -> str:
    """A shared variable becomes a reference into the memory of the thread's block."""
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?([\w: ]+?)\s+(\w+)\[\];",
        r"\1* \2 = static_cast<\1*>(::cuda_on_cpu::shared(nullptr, 0, 16));",
        text,
    )
    return re.sub(
        r"__shared__\s+((?:__align__\(\d+\)\s+|alignas\(\d+\)\s+)?[\w:<>, *]+?)\s+(\w+)((?:\[[^;]*\])?);",
        r"struct Shared_\2 { \1 \2\3; }; auto& \2 = ::cuda_on_cpu::shared_variable<Shared_\2>().\2;",
        text,
    )


def tensors(text: str) -> str:
    """What a tensor is asked for its memory goes through machine.h, which lets kernels use that and nothing else."""
    names = {"const_data_ptr": "read_only", "mutable_data_ptr": "writable", "is_cpu": "is_cpu"}
    call = re.compile(r"(\.|->)(const_data_ptr|mutable_data_ptr|is_cpu)\(\)")
    at = 0
    while match := call.search(text, at):
        start = expression(text, match.start())
        tensor = text[start : match.start()]
        tensor = f"*{tensor}" if match[1] == "->" else tensor
        new = f"::cuda_on_cpu::{names[match[2]]}({tensor})"
        text = text[:start] + new + text[match.end() :]
        at = start + len(new)
    return text


def in_a_namespace(source: Path, text: str) -> str:
    """Many sources make one translation unit: each has names of its own, where an unnamed namespace had them."""
    opened, registered = "\nnamespace robustfast {\nnamespace {\n", "TORCH_BOX(&robustfast::"
    assert text.count(opened) == 1, source
    text = text.replace(opened, opened.replace("namespace {", f"namespace {source.stem} {{"))
    return text.replace(registered, f"{registered}{source.stem}::")


def compiler() -> str | None:
    """g++, with which this is written; None where it is not."""
    return shutil.which("g++") if sys.platform == "linux" else None


FLAGS = ("-std=c++20", "-fPIC", "-w")
# The sanitizer's calls before loads and stores are what the machine watches. Contraction into fused multiply-add would
# round once where the kernels, compiled with -fmad=false, round twice.
WATCHED = ("-O1", "-ffp-contract=off", "-fsanitize=thread")
TORCH = Path(torch.__file__).parent
WITH_TORCH = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(TORCH / "include"))
LINK_TORCH = (f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10")


def library(names: list[str], csrc: Path = ROOT / "csrc") -> Path:
    """Compile the CUDA sources of the named ops, or of all where none is named.

    Raises:
        RuntimeError: g++ fails; with what it says.
    """
    sources = [csrc / f"{name}_cuda.cu" for name in names] or sorted(csrc.glob("*_cuda.cu"))
    parts = [in_a_namespace(source, source.read_text()) for source in sources]
    headers = {header.name: header.read_text() for header in csrc.glob("*.h")}
    return compiled(dict(zip(sources, parts, strict=True)), headers, WITH_TORCH, LINK_TORCH)


def compiled(
    sources: dict[Path, str],
    headers: dict[str, str],
    flags: tuple[str, ...] = (),
    link: tuple[str, ...] = (),
) -> Path:
    """A library of the sources' texts, beside the headers' texts, and the machine; kept until one of them changes."""
    gxx = compiler()
    if gxx is None:
        raise RuntimeError("CUDA kernels run on the CPU where g++ compiles them, on Linux")
    own = {
        path.name: path.read_text() for path in [*HERE.rglob("*.h"), HERE / "machine.cpp", HERE / "build.py"]
    }
    given = (own, headers, {str(path): text for path, text in sources.items()}, flags, torch.__version__)
    kept = ROOT / "build" / "cuda_on_cpu"
    kept.mkdir(parents=True, exist_ok=True)
    built = kept / f"{hashlib.sha256(repr(given).encode()).hexdigest()[:24]}.so"
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if built.exists():
            return built
        with tempfile.TemporaryDirectory(dir=kept) as name:
            folder = Path(name)
            for header, text in headers.items():
                (folder / header).write_text(f'#line 1 "{header}"\n{rewritten(text)}')
            parts = [f'#line 1 "{path}"\n{rewritten(text, path.stem)}\n' for path, text in sources.items()]
            (folder / "kernels.cpp").write_text("".join(parts))
            include = ["-I", str(HERE / "include"), "-I", str(folder), "-include", "cuda_runtime.h"]
            objects = [str(folder / "machine.o"), str(folder / "kernels.o")]
            # Of functions that both have, as of the standard library, the linker takes the first: the machine's own are
            # not to be watched.
            for command in (
                [*FLAGS, "-O2", "-c", str(HERE / "machine.cpp"), "-o", objects[0]],
                [*FLAGS, *WATCHED, *include, *flags, "-c", str(folder / "kernels.cpp"), "-o", objects[1]],
                ["-shared", "-Wl,-Bsymbolic", *objects, *link, "-o", str(folder / "library.so")],
            ):
                done = subprocess.run([gxx, *command], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"g++ {' '.join(command)}\n{done.stderr}")
            for old in sorted(kept.glob("*.so"), key=lambda path: path.stat().st_mtime)[:-20]:
                old.unlink()
            shutil.move(folder / "library.so", built)
    return built
