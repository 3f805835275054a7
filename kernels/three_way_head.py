"""Triton kernels of three_way_head. robustfast/reference/three_way_head.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA

__all__ = ["launch", "launch_backward"]

# Forward: 1024 units are 16 bytes of float32 a thread and tensor at four warps, twice over.
_BLOCK = 1024
# Backward: a program owns 16 columns, so that a layer of 512 units still makes 32 of them, and walks down the samples.
_COLUMNS = 16
_ROWS = 64


@triton.jit
def _relu(v):
    # NaN passes through.
    return tl.where(v <= 0, 0, v)


@triton.jit
def _hidden_kernel(p_r_ptr, p_n_ptr, b1_ptr, hidden_ptr, total, D, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    b = tl.load(b1_ptr + offsets % D, mask=mask)
    C: tl.constexpr = b.dtype
    r = tl.load(p_r_ptr + offsets, mask=mask).to(C)
    n = tl.load(p_n_ptr + offsets, mask=mask).to(C)
    T: tl.constexpr = hidden_ptr.dtype.element_ty
    tl.store(hidden_ptr + offsets, _relu((r + n) + b).to(T), mask=mask)
    tl.store(hidden_ptr + total + offsets, _relu(r + b).to(T), mask=mask)
    tl.store(hidden_ptr + 2 * total + offsets, _relu(n + b).to(T), mask=mask)


@triton.jit
def _masked(d_hidden_ptr, hidden_ptr, offsets, mask, C: tl.constexpr):
    hidden = tl.load(hidden_ptr + offsets, mask=mask, other=0)
    return tl.where(hidden <= 0, 0, tl.load(d_hidden_ptr + offsets, mask=mask, other=0).to(C))


@triton.jit
def _hidden_backward_kernel(
    d_hidden_ptr, hidden_ptr, d_r_ptr, d_n_ptr, d_b1_ptr, B, D,
    C: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = B.to(tl.int64) * D
    T: tl.constexpr = d_r_ptr.dtype.element_ty
    sums = tl.zeros([ROWS, COLUMNS], tl.float64)
    # With the bias, one program walks all samples, so that a column sums in one order; else programs share them out.
    for start in range(tl.program_id(1) * ROWS, B, tl.num_programs(1) * ROWS):
        rows = start + tl.arange(0, ROWS)
        mask = (rows < B)[:, None] & (columns < D)[None, :]
        offsets = rows.to(tl.int64)[:, None] * D + columns[None, :]
        s = _masked(d_hidden_ptr, hidden_ptr, offsets, mask, C)
        r = _masked(d_hidden_ptr, hidden_ptr, offsets + total, mask, C)
        n = _masked(d_hidden_ptr, hidden_ptr, offsets + 2 * total, mask, C)
        tl.store(d_r_ptr + offsets, (s + r).to(T), mask=mask)
        tl.store(d_n_ptr + offsets, (s + n).to(T), mask=mask)
        if BIAS:
            sums += (s + r).to(tl.float64) + n.to(tl.float64)
    if BIAS:
        tl.store(d_b1_ptr + columns, tl.sum(sums, 0).to(C), mask=columns < D)


def launch(p_r: Tensor, p_n: Tensor, b1: Tensor) -> Tensor:
    """Hidden units [3B, D] of the half products [B, D]; inputs that are not contiguous are copied once."""
    B, D = p_r.shape
    hidden = p_r.new_empty(3 * B, D)
    if hidden.numel():
        p_r, p_n, b1 = p_r.contiguous(), p_n.contiguous(), b1.contiguous()
        _hidden_kernel[(triton.cdiv(B * D, _BLOCK),)](p_r, p_n, b1, hidden, B * D, D, BLOCK=_BLOCK, **NO_FMA)
    return hidden


def launch_backward(d_hidden: Tensor, hidden: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the half products [B, D] and, if `bias`, of the bias [D]."""
    B, D = hidden.shape[0] // 3, hidden.shape[1]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    d_r, d_n = hidden.new_empty(B, D), hidden.new_empty(B, D)
    d_b1 = hidden.new_empty(D if bias else 0, dtype=dtype)
    if D and (B or bias):
        grid = (triton.cdiv(D, _COLUMNS), 1 if bias else triton.cdiv(B, _ROWS))
        _hidden_backward_kernel[grid](
            d_hidden.contiguous(), hidden.contiguous(), d_r, d_n, d_b1, B, D,
            C=tl.float64 if dtype == torch.float64 else tl.float32, BIAS=bias, ROWS=_ROWS, COLUMNS=_COLUMNS, **NO_FMA,
        )  # fmt: skip
    return d_r, d_n, d_b1
