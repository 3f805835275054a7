"""What Triton kernels on images share: the box, and numbers that are one for all samples or one each."""

import triton
import triton.language as tl

__all__ = ["clamp", "per_sample"]


@triton.jit
def clamp(v, lo, hi):
    v = tl.where(v < lo, lo, v)
    return tl.where(v > hi, hi, v)


@triton.jit
def per_sample(ptr, value, sample, mask, STRIDE: tl.constexpr, T: tl.constexpr):
    # STRIDE -1: a number from the host; 0: one in device memory; 1: one per sample.
    if STRIDE < 0:
        return tl.cast(value, T)
    else:  # noqa: RET505 -- the compiler drops this branch only as an else
        return tl.load(ptr + sample * STRIDE, mask=mask, other=0)
