"""The largest logits of each sample and their classes, and the labels among them, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inside", "largest", "wide"]


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits [B, count], in falling order, and their classes int64 [B, count].

    nan counts as the largest, as `torch.max` and `torch.sort` have it. Among equals the lower class comes first, as
    `torch.max` takes it on a CPU; `torch.topk` promises no order there.
    """
    values, classes = logits.sort(dim=1, descending=True, stable=True)
    return values[:, :count], classes[:, :count]


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def inside(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Labels with 0 in place of what is no class, and whether each was one, bool [B]."""
    known = (labels >= 0) & (labels < classes)
    return torch.where(known, labels, 0), known
