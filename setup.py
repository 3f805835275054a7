"""Builds robustfast/_C.so on PyTorch's stable ABI: for the CPU always, for CUDA where torch and a toolkit have it.

One _C.so serves Python 3.10 and later and torch 2.10 and later. Without it everything runs on the reference path, so an
absent or failing compiler does not fail the install; `python -m robustfast.doctor` tells what is there.

Environment variables:
    ROBUSTFAST_BUILD      0: leave the library out; required: fail where it cannot be built; auto: build it if possible
    ROBUSTFAST_CUDA       0: leave CUDA out
    TORCH_CUDA_ARCH_LIST  the GPUs to compile for; default: those of ARCHITECTURES that the toolkit knows
    MAX_JOBS              compilers at a time
"""

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, find_packages, setup


def toolkit() -> str | None:
    """Where the nvcc on PATH has its toolkit. torch takes the folder above nvcc's, and a wrapper script misleads it."""
    if shutil.which("nvcc") is None:
        return None
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    return os.path.normpath(top[1]) if top else None


# torch reads CUDA_HOME at its import.
if not os.environ.get("CUDA_HOME") and not os.environ.get("CUDA_PATH") and (found := toolkit()):
    os.environ["CUDA_HOME"] = found

try:
    from torch.utils import cpp_extension
except ImportError as error:
    sys.exit(
        f"robustfast: the library is built against the torch of this environment, and there is none ({error}). "
        "Run: pip install 'torch>=2.10' && pip install --no-build-isolation -e ."
    )

ROOT = Path(__file__).resolve().parent
ARCHITECTURES = ("8.0", "9.0", "10.0+PTX")

STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10 and later
# Contraction into fused multiply-add would round once where the reference rounds twice. Without errno square roots
# vectorise, to the same results. The sources are C++20, which torch before 2.13 does not ask for by itself.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    STABLE_ABI,
]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-lineinfo", "-DUSE_CUDA", STABLE_ABI]

MODE = os.environ.get("ROBUSTFAST_BUILD", "auto")
# cpp_extension.CUDA_HOME is None when torch has no CUDA, even with nvcc on PATH.
WITH_CUDA = cpp_extension.CUDA_HOME is not None and os.environ.get("ROBUSTFAST_CUDA") != "0"


def library(with_cuda: bool) -> Extension:
    sources = sorted(glob("csrc/*_cpu.cpp", root_dir=ROOT))
    if with_cuda:
        sources += sorted(glob("csrc/*_cuda.cu", root_dir=ROOT))
    return (cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension)(
        "robustfast._C",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        depends=sorted(glob("csrc/*.h", root_dir=ROOT)),
        extra_compile_args={"cxx": CXX_FLAGS + ["-DUSE_CUDA"] * with_cuda, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        optional=True,
    )


def known_architectures() -> str:
    """Those of ARCHITECTURES that the toolkit compiles for, in the form of TORCH_CUDA_ARCH_LIST."""
    command = [Path(cpp_extension.CUDA_HOME, "bin", "nvcc"), "--list-gpu-arch"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    named = {arch: "compute_" + arch.removesuffix("+PTX").replace(".", "") for arch in ARCHITECTURES}
    return ";".join(arch for arch, name in named.items() if name in listed)


def say(message: str) -> None:
    print(f"robustfast: {message}", file=sys.stderr, flush=True)


class BuildLibrary(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
    """Builds the library; what cannot be built is left out, and said."""

    def build_extensions(self) -> None:
        # A library of older sources would not fit the schemas of today's ops: better none.
        Path(self.get_ext_fullpath("robustfast._C")).unlink(missing_ok=True)
        reason = self.attempt(WITH_CUDA)
        if reason and WITH_CUDA:
            say(f"the CUDA kernels are left out: {reason}")
            # setuptools has put attributes of its own on the extension: exchange what differs, not the object.
            cpu, extension = library(with_cuda=False), self.extensions[0]
            for name in ("sources", "include_dirs", "library_dirs", "libraries", "extra_compile_args"):
                setattr(extension, name, getattr(cpu, name))
            reason = self.attempt(with_cuda=False)
        if reason and MODE == "required":
            sys.exit(f"robustfast: the library cannot be built: {reason}")
        if reason:
            say(f"the library is left out, everything runs on the reference path: {reason}")

    def attempt(self, with_cuda: bool) -> str | None:
        """Build; None when done, else why not."""
        compiler = self.compiler.compiler_cxx[0]
        if shutil.which(compiler) is None:
            return f"there is no C++ compiler ({compiler}); install one, for example: apt-get install g++"
        try:
            if with_cuda and "TORCH_CUDA_ARCH_LIST" not in os.environ:
                os.environ["TORCH_CUDA_ARCH_LIST"] = known_architectures()
            # distutils itself passes over what fails in an optional extension; here the reason is wanted.
            self.extensions[0].optional = False
            super().build_extensions()
        except Exception as error:  # compilers fail in many ways; none of them may fail the install
            return f"{type(error).__name__}: {str(error).splitlines()[0]}; the compiler's messages say more"
        finally:
            self.extensions[0].optional = True
        return None

    def copy_extensions_to_source(self) -> None:
        (ROOT / "robustfast" / "_C.so").unlink(missing_ok=True)
        super().copy_extensions_to_source()


if MODE not in ("0", "auto", "required"):
    sys.exit(f"robustfast: ROBUSTFAST_BUILD is {MODE!r}; use 0, auto or required")

setup(
    packages=[*find_packages(include=["robustfast*"]), "robustfast.kernels"],
    package_dir={"robustfast.kernels": "kernels"},
    ext_modules=[] if MODE == "0" else [library(WITH_CUDA)],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
