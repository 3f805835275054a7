"""Triton kernels of asymmetric_cross_entropy. robustfast/reference/asymmetric_cross_entropy.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA, in_layout_of

__all__ = ["launch", "launch_backward"]

# Rules, in the order of robustfast/ops/asymmetric_cross_entropy.py.
_Y: tl.constexpr = tl.constexpr(0)
_YHAT_S: tl.constexpr = tl.constexpr(2)
_YHAT_N: tl.constexpr = tl.constexpr(3)

_MAX_TERMS = 7

# Logits that a program holds at once: 64 samples of 10 classes, or one of 1000.
_TILE = 1024


@triton.jit
def _term(t, a, b, c, d, e, f, g, RULES: tl.constexpr):
    """The logits and the rule of term `t`, picked at run time: one body for all terms compiles seven times as fast."""
    rule = 0
    for k in tl.static_range(len(RULES)):
        rule = tl.where(t == k, RULES[k], rule)
    a = tl.where(t == 1, b, a)
    a = tl.where(t == 2, c, a)
    a = tl.where(t == 3, d, a)
    a = tl.where(t == 4, e, a)
    a = tl.where(t == 5, f, a)
    return tl.where(t == 6, g, a), rule


@triton.jit
def _target(y_ptr, yhat_s_ptr, yhat_n_ptr, y_stride, s_stride, n_stride, rows, here, rule):
    y = tl.load(y_ptr + rows * y_stride, mask=here, other=0)
    s = tl.load(yhat_s_ptr + rows * s_stride, mask=here, other=0)
    n = tl.load(yhat_n_ptr + rows * n_stride, mask=here, other=0)
    label = tl.where(rule == _YHAT_S, s, tl.where(rule == _YHAT_N, n, y))
    keep = here & ((rule == _Y) | (tl.where(rule == _YHAT_N, n, s) != y))
    return label, keep


@triton.jit
def _softmax(x_ptr, row_stride, column_stride, rows, columns, classes, keep, C: tl.constexpr):
    """Logits less their maximum, their exponentials and the sum of these; samples that are left out are not read."""
    inside = (columns < classes)[None, :]
    offsets = rows[:, None] * row_stride + columns[None, :] * column_stride
    x = tl.load(x_ptr + offsets, mask=keep[:, None] & inside, other=0).to(C)
    x = tl.where(inside, x, float("-inf"))
    # A NaN need not show in the maximum: it shows in the sum.
    x = x - tl.max(x, 1)[:, None]
    e = tl.where(inside, tl.exp(x), 0)
    return x, e, tl.sum(e, 1)


@triton.jit
def _forward_kernel(
    a, b, c, d, e, f, g, row_stride, column_stride, y_ptr, yhat_s_ptr, yhat_n_ptr, y_stride, s_stride, n_stride,
    values_ptr, B, classes,
    RULES: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # One program per term, so that a term sums in one order.
    t = tl.program_id(0)
    x_ptr, rule = _term(t, a, b, c, d, e, f, g, RULES)
    columns = tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS], tl.float64)
    for start in range(0, B, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        label, keep = _target(
            y_ptr, yhat_s_ptr, yhat_n_ptr, y_stride, s_stride, n_stride, rows, rows < B, rule
        )
        x, _, s = _softmax(x_ptr, row_stride, column_stride, rows, columns, classes, keep, C)
        own = tl.sum(tl.where(columns[None, :] == label[:, None], x, 0), 1)
        own = tl.where((label >= 0) & (label < classes), own, float("nan"))
        total += tl.where(keep, tl.log(s) - own, 0).to(tl.float64)
    tl.store(values_ptr + t, (tl.sum(total) / B).to(C))


@triton.jit
def _backward_kernel(
    grad_ptr, grad_stride,
    a, b, c, d, e, f, g, row_stride, column_stride, y_ptr, yhat_s_ptr, yhat_n_ptr, y_stride, s_stride, n_stride,
    d_logits_ptr, B, classes,
    RULES: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    x_ptr, rule = _term(t, a, b, c, d, e, f, g, RULES)
    columns = tl.arange(0, COLUMNS)
    rows = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = rows < B
    label, keep = _target(y_ptr, yhat_s_ptr, yhat_n_ptr, y_stride, s_stride, n_stride, rows, here, rule)
    _, exponentials, s = _softmax(x_ptr, row_stride, column_stride, rows, columns, classes, keep, C)
    known = (label >= 0) & (label < classes)
    scale = tl.where(known, tl.load(grad_ptr + t * grad_stride) / tl.cast(B, C), float("nan"))
    hit = (columns[None, :] == label[:, None]).to(C)
    gradient = tl.where(keep[:, None], (exponentials / s[:, None] - hit) * scale[:, None], 0)
    offsets = (t * B + rows)[:, None] * classes + columns[None, :]
    mask = here[:, None] & (columns < classes)[None, :]
    tl.store(d_logits_ptr + offsets, gradient.to(d_logits_ptr.dtype.element_ty), mask=mask)


def _arguments(
    logits: list[Tensor], y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None, rules: list[int]
) -> tuple[tuple[object, ...], dict[str, object]]:
    # Logits laid out otherwise than those of the first term are copied once.
    first = logits[0]
    terms = [first, *(in_layout_of(term, first) for term in logits[1:])]
    terms += [first] * (_MAX_TERMS - len(terms))
    labels = [y if label is None else label for label in (y, yhat_s, yhat_n)]
    width = triton.next_power_of_2(first.shape[1])
    constants = {
        "RULES": tuple(rules),
        "C": tl.float64 if first.dtype == torch.float64 else tl.float32,
        "ROWS": max(1, min(triton.next_power_of_2(len(y)), _TILE // width)),
        "COLUMNS": width,
    }
    return (*terms, *first.stride(), *labels, *(label.stride(0) for label in labels)), {**constants, **NO_FMA}


def launch(
    logits: list[Tensor], y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None, rules: list[int]
) -> Tensor:
    """The value of each term, [len(logits)]."""
    arguments, constants = _arguments(logits, y, yhat_s, yhat_n, rules)
    values = y.new_empty(len(logits), dtype=torch.promote_types(logits[0].dtype, torch.float32))
    _forward_kernel[(len(logits),)](*arguments, values, *logits[0].shape, **constants)
    return values


def launch_backward(
    grad: Tensor,
    logits: list[Tensor],
    y: Tensor,
    yhat_s: Tensor | None,
    yhat_n: Tensor | None,
    rules: list[int],
) -> Tensor:
    """Gradients of all terms' logits, [len(logits), B, C]."""
    arguments, constants = _arguments(logits, y, yhat_s, yhat_n, rules)
    B, classes = logits[0].shape
    d_logits = logits[0].new_empty(len(logits), B, classes)
    grid = (len(logits), triton.cdiv(B, constants["ROWS"]))
    _backward_kernel[grid](grad, grad.stride(0), *arguments, d_logits, B, classes, **constants)
    return d_logits
