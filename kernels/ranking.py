"""The largest logits of each sample and their classes for Triton kernels: csrc/ranking.h, a tile of samples at once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA

__all__ = ["constants_of", "keys_of", "label_of", "largest", "load_rows", "logit_of"]

# Logits that a program holds at once: 64 samples of 10 classes, or one of 1000.
_TILE = 1024


@triton.jit
def load_rows(x_ptr, row_stride, column_stride, rows, columns, B, classes, C: tl.constexpr):
    """A tile of logits; what lies outside of them is 0."""
    mask = (rows < B)[:, None] & (columns < classes)[None, :]
    return tl.load(
        x_ptr + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0
    ).to(C)


@triton.jit
def label_of(ptr, stride, rows, B, classes):
    """Labels of the rows, and whether each is a class."""
    label = tl.load(ptr + rows * stride, mask=rows < B, other=0)
    return label, (label >= 0) & (label < classes)


@triton.jit
def keys_of(x, columns, classes, BITS: tl.constexpr):
    """Integers that order as the logits do, nan above all and both zeros alike; the lowest one outside the classes."""
    bits = tl.where(x == 0, 0.0, x).to(BITS, bitcast=True)
    top = tl.cast((1 << (BITS.primitive_bitwidth - 1)) - 1, BITS)
    ordered = bits ^ ((bits >> (BITS.primitive_bitwidth - 1)) & top)
    ordered = tl.where(x == x, ordered, top)
    return tl.where((columns < classes)[None, :], ordered, -top - 1)


@triton.jit
def largest(keys, columns, BITS: tl.constexpr):
    """Class of the largest key of each row, the lowest of equals, and the keys without it."""
    place = tl.min(tl.where(keys == tl.max(keys, 1)[:, None], columns[None, :], columns.shape[0]), 1)
    top = tl.cast((1 << (BITS.primitive_bitwidth - 1)) - 1, BITS)
    return place, tl.where(columns[None, :] == place[:, None], -top - 1, keys)


@triton.jit
def logit_of(x, columns, place):
    """The logit of each row at one class."""
    return tl.sum(tl.where(columns[None, :] == place[:, None], x, 0), 1)


def constants_of(logits: Tensor) -> dict[str, object]:
    """Sizes of a tile and the types it is computed in, for the kernels of losses that rank."""
    width = triton.next_power_of_2(logits.shape[1])
    double = logits.dtype == torch.float64
    return {
        "C": tl.float64 if double else tl.float32,
        "BITS": tl.int64 if double else tl.int32,
        "ROWS": max(1, min(triton.next_power_of_2(len(logits)), _TILE // width)),
        "COLUMNS": width,
        **NO_FMA,
    }
