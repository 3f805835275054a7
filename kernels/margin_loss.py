"""Triton kernels of margin_loss. robustfast/reference/margin_loss.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.ranking import constants_of, keys_of, label_of, largest, load_rows, logit_of

__all__ = ["launch", "launch_backward"]


@triton.jit
def _margin(
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """The margin of each row, the classes it is taken between, and whether the labels are classes."""
    x = load_rows(x_ptr, row_stride, column_stride, rows, columns, B, classes, C)
    own, known = label_of(y_ptr, y_stride, rows, B, classes)
    if TARGETED:
        other, there = label_of(target_ptr, target_stride, rows, B, classes)
        known = known & there
    else:
        first, rest = largest(keys_of(x, columns, classes, BITS), columns, BITS)
        second, _ = largest(rest, columns, BITS)
        other = tl.where(first == own, second, first)
    return logit_of(x, columns, other) - logit_of(x, columns, own), other, own, known


@triton.jit
def _forward_kernel(
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, values_ptr, B, classes,
    kappa: tl.float64,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    margin, _, _, known = _margin(
        x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
        TARGETED, C, BITS,
    )  # fmt: skip
    most = tl.cast(kappa, C)
    margin = tl.where(margin > most, most, margin)
    tl.store(values_ptr + rows, tl.where(known, margin, float("nan")), mask=rows < B)


@triton.jit
def _backward_kernel(
    grad_ptr, grad_stride,
    x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, d_logits_ptr, B, classes,
    kappa: tl.float64,
    TARGETED: tl.constexpr, C: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    margin, other, own, known = _margin(
        x_ptr, row_stride, column_stride, y_ptr, y_stride, target_ptr, target_stride, rows, columns, B, classes,
        TARGETED, C, BITS,
    )  # fmt: skip
    grad = tl.load(grad_ptr + rows * grad_stride, mask=rows < B, other=0)
    slope = tl.where(margin > tl.cast(kappa, C), 0.0, grad)[:, None]
    d = tl.where(columns[None, :] == other[:, None], slope, 0.0)
    d = d - tl.where(columns[None, :] == own[:, None], slope, 0.0)
    d = tl.where(known[:, None], d, float("nan"))
    mask = (rows < B)[:, None] & (columns < classes)[None, :]
    offsets = rows[:, None] * classes + columns[None, :]
    tl.store(d_logits_ptr + offsets, d.to(d_logits_ptr.dtype.element_ty), mask=mask)


def launch(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """The margins [B]."""
    values = logits.new_empty(len(logits), dtype=torch.promote_types(logits.dtype, torch.float32))
    if values.numel():
        against, constants = y if target is None else target, constants_of(logits)
        _forward_kernel[(triton.cdiv(len(logits), constants["ROWS"]),)](
            logits, *logits.stride(), y, y.stride(0), against, against.stride(0), values, *logits.shape, kappa,
            TARGETED=target is not None, **constants,
        )  # fmt: skip
    return values


def launch_backward(grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """Gradients of the logits [B, K]."""
    d_logits = logits.new_empty(logits.shape)
    if d_logits.numel():
        against, constants = y if target is None else target, constants_of(logits)
        _backward_kernel[(triton.cdiv(len(logits), constants["ROWS"]),)](
            grad, grad.stride(0), logits, *logits.stride(), y, y.stride(0), against, against.stride(0), d_logits,
            *logits.shape, kappa,
            TARGETED=target is not None, **constants,
        )  # fmt: skip
    return d_logits
