"""Triton kernels of random_start. robustfast/reference/random_start.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.images import clamp, per_sample
from robustfast.kernels.layout import NO_FMA, in_layout_of, planes
from robustfast.kernels.philox import angle, exponential, in_a_row, words

__all__ = ["launch"]

_PIXEL: tl.constexpr = tl.constexpr(0)
_L2: tl.constexpr = tl.constexpr(1)

# The second word of the counter: what a draw is for.
_FOR_PIXEL: tl.constexpr = tl.constexpr(0)
_FOR_DIRECTION: tl.constexpr = tl.constexpr(1)
_FOR_RADIUS: tl.constexpr = tl.constexpr(2)

# Quads a program draws at once: two a thread at four warps.
_BLOCK = 256


@triton.jit
def _offset(e, size, COUNT: tl.constexpr):
    """Memory offset of the element at logical position e: COUNT planes of `size` values lie pixel after pixel."""
    if COUNT == 1:
        return e
    else:  # noqa: RET505 -- the compiler drops this branch only as an else
        return e % size * COUNT + e // size


@triton.jit
def _number(index_ptr, sample):
    if index_ptr is None:
        return sample
    else:  # noqa: RET505
        return tl.load(index_ptr + sample)


@triton.jit
def _unit_pixel(word, T: tl.constexpr):
    return ((word >> 8).to(tl.int32) - 8388608).to(T) * 1.1920928955078125e-07


@triton.jit(do_not_specialize=["seed"])
def _start_pixel_kernel(
    x_ptr, out_ptr, index_ptr, eps_ptr, n, size, blocks,
    seed: tl.int64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    EPS_STRIDE: tl.constexpr, COUNT: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    a, b, c, d = words(block * BLOCK + tl.arange(0, BLOCK), _FOR_PIXEL, _number(index_ptr, sample), seed)
    delta = _unit_pixel(in_a_row(a, b, c, d), T) * per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T)
    e = block * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    at = sample * n + _offset(e, size, COUNT)
    x = tl.load(x_ptr + at, mask=e < n, other=0)
    tl.store(out_ptr + at, clamp(x + delta, tl.cast(lo, T), tl.cast(hi, T)), mask=e < n)


@triton.jit
def _gaussian_pair(first, second):
    radius = tl.sqrt(exponential(first, 32))
    turned = angle(second)
    return radius * tl.cos(turned), radius * tl.sin(turned)


@triton.jit
def _laplace(word):
    size = exponential(word >> 1, 31)
    return tl.where((word & 1) == 1, -size, size)


@triton.jit
def _directions(quad, number, seed, LAW: tl.constexpr):
    a, b, c, d = words(quad, _FOR_DIRECTION, number, seed)
    if LAW == _L2:
        g, h = _gaussian_pair(a, b)
        i, j = _gaussian_pair(c, d)
        return in_a_row(g, h, i, j)
    else:  # noqa: RET505
        return in_a_row(_laplace(a), _laplace(b), _laplace(c), _laplace(d))


@triton.jit(do_not_specialize=["seed"])
def _start_ball_kernel(
    x_ptr, out_ptr, index_ptr, eps_ptr, n, size,
    seed: tl.int64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    EPS_STRIDE: tl.constexpr, COUNT: tl.constexpr, LAW: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    number = _number(index_ptr, sample)
    lanes = tl.arange(0, BLOCK)
    elements = tl.arange(0, 4 * BLOCK)
    sums = tl.zeros([4 * BLOCK], tl.float64)
    for start in range(0, n, 4 * BLOCK):
        g = _directions(start // 4 + lanes, number, seed, LAW)
        sums += tl.where(start + elements < n, g * g if LAW == _L2 else tl.abs(g), 0.0)
    extra, _, _, _ = words(tl.arange(0, 1), _FOR_RADIUS, number, seed)
    total = tl.sum(sums) + tl.sum(exponential(extra, 32))
    if LAW == _L2:
        total = tl.sqrt(total)
    scale = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T).to(tl.float64) / total
    for start in range(0, n, 4 * BLOCK):
        delta = (_directions(start // 4 + lanes, number, seed, LAW) * scale).to(T)
        e = start + elements
        at = sample * n + _offset(e, size, COUNT)
        x = tl.load(x_ptr + at, mask=e < n, other=0)
        tl.store(out_ptr + at, clamp(x + delta, tl.cast(lo, T), tl.cast(hi, T)), mask=e < n)


def launch(
    x: Tensor, eps: Tensor, law: int, seed: int, index: Tensor | None, lo: float, hi: float, *, out: Tensor
) -> None:
    """Draw into `out`; what is neither contiguous nor channels-last is copied once."""
    if out.numel() == 0:
        return
    count = planes(out)
    dense = out if count else torch.empty_like(out, memory_format=torch.contiguous_format)
    count = count or 1
    x = in_layout_of(x, dense)
    batch = dense.shape[0]
    n = dense.numel() // batch
    # A 0-d CPU tensor travels as a number (in float32, so float64 images keep it in memory); others lie on the device.
    value = eps.item() if eps.device.type == "cpu" and eps.dim() == 0 and eps.dtype == torch.float32 else None
    eps = x if value is not None else eps.to(x.device).contiguous()
    stride = eps.dim() if value is None else -1
    pointers = (x, dense, None if index is None else index.contiguous(), eps)
    numbers = (seed, value or 0.0, lo, hi)
    block = min(_BLOCK, triton.next_power_of_2((n + 3) // 4))
    meta = {
        "EPS_STRIDE": stride,
        "COUNT": count,
        "T": tl.float32 if x.dtype == torch.float32 else tl.float64,
        "BLOCK": block,
    }
    if law == _PIXEL.value:
        blocks = triton.cdiv(n, 4 * block)
        _start_pixel_kernel[(batch * blocks,)](*pointers, n, n // count, blocks, *numbers, **meta, **NO_FMA)
    else:
        _start_ball_kernel[(batch,)](*pointers, n, n // count, *numbers, LAW=law, **meta, **NO_FMA)
    if dense is not out:
        out.copy_(dense)
