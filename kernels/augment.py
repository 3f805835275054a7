"""Triton kernel of augment. robustfast/reference/augment.py is the definition."""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.interpreter import INTERPRETED
from robustfast.kernels.layout import NO_FMA, planes
from robustfast.reference.augment import check_numbers

__all__ = ["launch"]

# Eight values a thread at four warps.
_BLOCK = 1024

# Assertions are left out without `debug`, which would also check sums of 32-bit words, which wrap on purpose.
_ASSERT = {} if INTERPRETED else {"debug": True, "sanitize_overflow": False}


@triton.jit
def _place(word, places):
    return (word.to(tl.int64) * places) >> 32


@triton.jit
def _quotient(pixel, scale, T: tl.constexpr):
    if T.primitive_bitwidth == 64:
        return pixel.to(T) / scale
    else:  # noqa: RET505 -- the compiler drops this branch only as an else
        return tl.div_rn(pixel.to(T), scale)  # `/` of float32 is an approximation


@triton.jit
def _to_bfloat16(v):
    """Rounded to nearest even: the interpreter cuts the lower bits off, so none are left for it. Not for NaN."""
    bits = v.to(tl.uint32, bitcast=True)
    bits += 32767 + ((bits >> 16) & 1)
    return ((bits >> 16) << 16).to(tl.float32, bitcast=True).to(tl.bfloat16)


@triton.jit(do_not_specialize=["seed", "scale_bits"])
def _take_kernel(
    images_ptr, index_ptr, out_ptr, images, image, channel, row, pixel, channels, height, width, places, blocks,
    seed: tl.int64, scale_bits: tl.int64,
    FLIP: tl.constexpr, LAST: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    number = tl.load(index_ptr + sample)
    tl.device_assert(
        (number >= 0) & (number < images), "augment: index holds a number that is not in 0..N - 1"
    )
    top, left, mirror, _ = tl.philox(seed, (number & 0xFFFFFFFF).to(tl.uint32), 0, 0, 0)

    n = channels * height * width
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        c = e % channels
        x = e // channels % width
        y = e // channels // width
    else:
        x = e % width
        y = e // width % height
        c = e // width // height
    if FLIP:
        x = tl.where((mirror >> 31) == 1, width - 1 - x, x)
    y = y + _place(top, places)
    x = x + _place(left, places)
    at = number * image + c.to(tl.int64) * channel + y * row + x * pixel
    value = tl.load(images_ptr + at, mask=e < n, other=0)
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if kind != tl.uint8:
        scale = tl.cast(scale_bits, tl.int64).to(tl.float64, bitcast=True).to(T)
        value = _quotient(value, scale, T)
        if kind == tl.bfloat16:
            value = _to_bfloat16(value)
    tl.store(out_ptr + sample * n + e, value, mask=e < n)


def launch(
    images: Tensor, index: Tensor, seed: int, pad: int, flip: bool, scale: float, *, out: Tensor
) -> None:
    """Write `out`, through a copy where it is neither contiguous nor channels-last."""
    if out.numel() == 0:
        return
    if index.is_cpu:
        check_numbers(index, images.shape[0])
    count = planes(out)
    dense = out if count else torch.empty_like(out, memory_format=torch.contiguous_format)
    batch, *size = dense.shape
    n = dense.numel() // batch
    block = min(_BLOCK, triton.next_power_of_2(n))
    blocks = triton.cdiv(n, block)
    # As an integer, since a Python float reaches the kernel in float32.
    (scale_bits,) = struct.unpack("q", struct.pack("d", scale))
    _take_kernel[(batch * blocks,)](
        images, index.contiguous(), dense, images.shape[0], *images.stride(), *size, 2 * pad + 1, blocks,
        seed, scale_bits,
        FLIP=flip, LAST=count > 1, T=tl.float64 if out.dtype == torch.float64 else tl.float32, BLOCK=block,
        **NO_FMA, **_ASSERT,
    )  # fmt: skip
    if dense is not out:
        out.copy_(dense)
