"""Triton kernels of dlr_loss. robustfast/reference/dlr_loss.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.ranking import constants_of, keys_of, label_of, largest, load_rows, logit_of

__all__ = ["launch", "launch_backward"]


@triton.jit
def _ratio(
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Margin and gap of each row, the classes they are made of, and whether the labels are classes."""
    x = load_rows(x_ptr, row_stride, column_stride, rows, columns, B, classes, C)
    first, keys = largest(keys_of(x, columns, classes, BITS), columns, BITS)
    second, keys = largest(keys, columns, BITS)
    third, keys = largest(keys, columns, BITS)
    # Read no sooner than used: held over the ranking, labels of eight samples in float64 spill with Triton 3.6.
    own, known = label_of(y_ptr, y_stride, rows, B, classes)
    low = logit_of(x, columns, third)
    fourth = third
    if TARGETED:
        fourth, _ = largest(keys, columns, BITS)
        low = tl.cast(0.5, C) * (low + logit_of(x, columns, fourth))
        other, there = label_of(target_ptr, target_stride, rows, B, classes)
        known = known & there
    else:
        other = tl.where(first == own, second, first)
    gap = logit_of(x, columns, first) - low + tl.cast(1e-12, C)
    # Rows beyond the batch divide by one.
    gap = tl.where(rows < B, gap, 1.0)
    return (
        logit_of(x, columns, other) - logit_of(x, columns, own), gap, other, own, first, third, fourth, known
    )  # fmt: skip


@triton.jit
def _divide(a, b, C: tl.constexpr):
    """a / b rounded to nearest, which `/` of float32 is not."""
    if C.primitive_bitwidth == 32:
        return tl.div_rn(a, b)
    else:  # noqa: RET505 -- the compiler drops this branch only as an else
        return a / b


@triton.jit
def _forward_kernel(
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, values_ptr, B, classes,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    margin, gap, _, _, _, _, _, known = _ratio(
        x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
        TARGETED, C, BITS,
    )  # fmt: skip
    tl.store(values_ptr + rows, tl.where(known, _divide(margin, gap, C), float("nan")), mask=rows < B)


@triton.jit
def _at(columns, place, slope):
    return tl.where(columns[None, :] == place[:, None], slope[:, None], 0.0)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_stride,
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, d_logits_ptr, B, classes,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    margin, gap, other, own, first, third, fourth, known = _ratio(
        x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
        TARGETED, C, BITS,
    )  # fmt: skip
    grad = tl.load(grad_ptr + rows * grad_stride, mask=rows < B, other=0)
    margin_slope = _divide(grad, gap, C)
    gap_slope = -grad * _divide(_divide(margin, gap, C), gap, C)
    d = _at(columns, other, margin_slope) - _at(columns, own, margin_slope) + _at(columns, first, gap_slope)
    if TARGETED:
        half = gap_slope * tl.cast(0.5, C)
        d = d - _at(columns, third, half) - _at(columns, fourth, half)
    else:
        d = d - _at(columns, third, gap_slope)
    d = tl.where(known[:, None], d, float("nan"))
    mask = (rows < B)[:, None] & (columns < classes)[None, :]
    offsets = rows[:, None] * classes + columns[None, :]
    tl.store(d_logits_ptr + offsets, d.to(d_logits_ptr.dtype.element_ty), mask=mask)


def launch(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """The ratios [B]."""
    values = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    if values.numel():
        against, constants = y if target is None else target, constants_of(logits)
        _forward_kernel[(triton.cdiv(len(logits), constants["ROWS"]),)](
            logits, *logits.stride(), y, y.stride(0), against, against.stride(0), values, *logits.shape,
            TARGETED=target is not None, **constants,
        )  # fmt: skip
    return values


def launch_backward(grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    """Gradients of the logits [B, K]."""
    d_logits = logits.new_empty(logits.shape)
    if d_logits.numel():
        against, constants = y if target is None else target, constants_of(logits)
        _backward_kernel[(triton.cdiv(len(logits), constants["ROWS"]),)](
            grad, grad.stride(0), logits, *logits.stride(), y, y.stride(0), against, against.stride(0), d_logits,
            *logits.shape,
            TARGETED=target is not None, **constants,
        )  # fmt: skip
    return d_logits
