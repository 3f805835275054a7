"""Triton kernels of affine_relu. robustfast/reference/affine_relu.py is the definition."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA
from robustfast.reference.affine_relu import in_order, is_channels_last

__all__ = ["launch", "launch_backward"]

# Launch parameters; bench/tune.py measures them. block: bytes of the mask that a program makes, 8 elements each. With
# four warps these are two 16-byte loads of bfloat16 for a thread and tensor.
LAUNCH = {"block": 256, "warps": 4}

# Where the channels of the 8 elements of a byte are: side by side, all one, anywhere. The last with 64-bit numbers.
_ALONG: tl.constexpr = tl.constexpr(0)
_SAME: tl.constexpr = tl.constexpr(1)
_ANYWHERE: tl.constexpr = tl.constexpr(2)
_FAR: tl.constexpr = tl.constexpr(3)


@triton.jit
def _channels_of(rows, inner, C, WHERE: tl.constexpr):
    """The channels of the elements [BLOCK, 8] of these bytes, or what broadcasts against them."""
    columns = tl.arange(0, 8)[None, :]
    if WHERE == _ALONG:
        return (rows % (C // 8))[:, None] * 8 + columns
    elif WHERE == _SAME:  # noqa: RET505 -- the compiler drops a branch only as an else
        return (rows // (inner // 8) % C)[:, None]
    elif WHERE == _ANYWHERE:
        return (rows[:, None] * 8 + columns) // inner % C
    else:
        return (rows.to(tl.int64)[:, None] * 8 + columns) // inner % C


@triton.jit
def _forward_kernel(
    x_ptr, residual_ptr, scale_ptr, shift_ptr, y_ptr, sum_ptr, mask_ptr, total, inner, C,
    WHERE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, 8)[None, :]
    first = rows.to(tl.int64) * 8
    offsets = first[:, None] + columns
    inside = offsets < total
    channels = _channels_of(rows, inner, C, WHERE)
    T: tl.constexpr = x_ptr.dtype.element_ty
    W: tl.constexpr = shift_ptr.dtype.element_ty
    t = tl.load(x_ptr + offsets, mask=inside, other=0)
    if residual_ptr is not None:
        t = (t.to(W) + tl.load(residual_ptr + offsets, mask=inside, other=0).to(W)).to(T)
    if sum_ptr is not None:
        tl.store(sum_ptr + offsets, t, mask=inside)
    v = t.to(W)
    if scale_ptr is not None:
        v = tl.load(scale_ptr + channels) * v
    v += tl.load(shift_ptr + channels)
    # NaN passes through.
    y = tl.where(v <= 0, 0, v).to(T)
    tl.store(y_ptr + offsets, y, mask=inside)
    if mask_ptr is not None:
        kept = y.to(W)
        passed = inside & ((kept > 0) | (kept != kept))
        tl.store(mask_ptr + rows, tl.sum(passed.to(tl.int32) << columns, 1).to(tl.uint8), mask=first < total)


@triton.jit
def _backward_kernel(
    grad_y_ptr, grad_sum_ptr, mask_ptr, scale_ptr, grad_x_ptr, total, inner, C,
    W: tl.constexpr, WHERE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, 8)[None, :]
    first = rows.to(tl.int64) * 8
    offsets = first[:, None] + columns
    inside = offsets < total
    d = tl.load(grad_y_ptr + offsets, mask=inside, other=0).to(W)
    if scale_ptr is not None:
        d *= tl.load(scale_ptr + _channels_of(rows, inner, C, WHERE))
    bits = tl.load(mask_ptr + rows, mask=first < total, other=0).to(tl.int32)
    d = tl.where((bits[:, None] >> columns & 1) != 0, d, 0)
    if grad_sum_ptr is not None:
        d += tl.load(grad_sum_ptr + offsets, mask=inside, other=0).to(W)
    tl.store(grad_x_ptr + offsets, d.to(grad_x_ptr.dtype.element_ty), mask=inside)


def launch(
    x: Tensor, residual: Tensor | None, scale: Tensor | None, shift: Tensor, keep_sum: bool, keep_bits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, t where it is kept and the bits where they are, else empty; what lies otherwise than x is copied once."""
    last = is_channels_last(x)
    x = in_order(x, last)
    y = torch.empty_like(x)
    t = torch.empty_like(x) if keep_sum else x.new_empty(0)
    mask = x.new_empty((x.numel() + 7) // 8 if keep_bits else 0, dtype=torch.uint8)
    if x.numel():
        residual = None if residual is None else in_order(residual, last)
        scale = None if scale is None else scale.contiguous()
        kept = t if keep_sum else None, mask if keep_bits else None
        grid, options = _launched(x, last)
        _forward_kernel[grid](x, residual, scale, shift.contiguous(), y, *kept, *_sizes(x, last), **options)
    return y, t, mask


def launch_backward(
    grad_y: Tensor, grad_sum: Tensor | None, mask: Tensor, scale: Tensor | None, channels_last: bool
) -> Tensor:
    """The gradient of x, laid out as the result of the forward was."""
    grad_y = in_order(grad_y, channels_last)
    grad_x = torch.empty_like(grad_y)
    if grad_y.numel():
        grad_sum = None if grad_sum is None else in_order(grad_sum, channels_last)
        scale = None if scale is None else scale.contiguous()
        wide = tl.float64 if grad_y.dtype == torch.float64 else tl.float32
        grid, options = _launched(grad_y, channels_last)
        sizes = _sizes(grad_y, channels_last)
        _backward_kernel[grid](grad_y, grad_sum, mask.contiguous(), scale, grad_x, *sizes, W=wide, **options)
    return grad_x


def _sizes(t: Tensor, channels_last: bool) -> tuple[int, int, int]:
    """All elements, neighbours in memory of one channel, channels."""
    return t.numel(), 1 if channels_last else t[0, 0].numel(), t.shape[1]


def _launched(t: Tensor, channels_last: bool) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and options of the kernel on t."""
    total, inner, channels = _sizes(t, channels_last)
    block = LAUNCH["block"]
    if inner == 1 and channels % 8 == 0:
        where = _ALONG
    elif inner % 8 == 0:
        where = _SAME
    else:
        where = _ANYWHERE if total < 2**31 - 8 * block else _FAR
    options = {"WHERE": where.value, "BLOCK": block, "num_warps": LAUNCH["warps"], **NO_FMA}
    return (triton.cdiv(total, 8 * block),), options
