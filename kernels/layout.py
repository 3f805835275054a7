"""How Triton kernels see image tensors: a batch of dense samples, all laid out alike."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.kernels.interpreter import INTERPRETED

__all__ = ["NO_FMA", "in_layout_of", "is_dense_batch", "planes"]

# Launch options of every kernel: contraction into fused multiply-add would round once where the reference rounds twice.
# The interpreter knows no such option, and never contracts.
NO_FMA = {} if INTERPRETED else {"enable_fp_fusion": False}


def is_dense_batch(t: Tensor) -> bool:
    """Whether samples of `t` [B, ...] follow each other, each one dense block, in any order of its dimensions."""
    block = t[0].numel() if len(t) else 0
    if len(t) > 1 and t.stride(0) != block:
        return False
    filled = 1
    for size, stride in sorted(zip(t.shape[1:], t.stride()[1:], strict=True), key=lambda pair: pair[1]):
        if size > 1 and stride != filled:
            return False
        filled *= size
    return True


def in_layout_of(t: Tensor, like: Tensor) -> Tensor:
    """`t` itself if its strides are those of `like`, else a copy that has them."""
    same = all(a == b for size, a, b in zip(t.shape, t.stride(), like.stride(), strict=True) if size > 1)
    return t if same else torch.empty_like(like, dtype=t.dtype).copy_(t)


def planes(t: Tensor) -> int:
    """1 for contiguous samples, the number of channels for channels-last ones, 0 for others."""
    if t.is_contiguous():
        return 1
    return t.shape[1] if t.dim() > 2 and t.movedim(1, -1).is_contiguous() else 0
