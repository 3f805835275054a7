"""Builds robustfast/_C.so on PyTorch's stable ABI: CPU always, CUDA where torch and a toolkit have it."""

import os
from glob import glob
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

ROOT = Path(__file__).parent

# cpp_extension.CUDA_HOME is None when torch has no CUDA, even with nvcc on PATH.
WITH_CUDA = CUDA_HOME is not None
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # torch 2.10 and later

# Contraction into fused multiply-add would round once where the reference rounds twice.
CXX_FLAGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unused-parameter", STABLE_ABI]
NVCC_FLAGS = ["-O3", "-fmad=false", "-lineinfo", "-DUSE_CUDA", STABLE_ABI]

sources = sorted(glob("csrc/*_cpu.cpp", root_dir=ROOT))
if WITH_CUDA:
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")
    sources += sorted(glob("csrc/*_cuda.cu", root_dir=ROOT))
    CXX_FLAGS.append("-DUSE_CUDA")

extension = (CUDAExtension if WITH_CUDA else CppExtension)(
    "robustfast._C",
    sources,
    include_dirs=[str(ROOT / "csrc")],
    depends=sorted(glob("csrc/*.h", root_dir=ROOT)),
    extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
    py_limited_api=True,
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
