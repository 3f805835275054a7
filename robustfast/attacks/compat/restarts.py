"""Restarts as research scripts choose among them: by the loss alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["highest_loss"]


def highest_loss(
    model: Callable[[Tensor], Tensor],
    X: Tensor,
    y: Tensor,
    run: Callable[[], Tensor],
    restarts: int,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The delta of the highest loss of each sample over `restarts` calls of `run`, whether it fools the model or not.

    The last of equals, and zero for a sample whose loss is nan or below zero each time, as in the scripts.
    """
    best = torch.zeros_like(X)
    highest = X.new_zeros(len(X))
    for _ in range(restarts):
        delta = run()
        with torch.no_grad():
            logits = model(X + delta).float()
        losses = F.cross_entropy(logits, y, reduction="none") if loss is None else loss(logits, y)
        better = losses >= highest
        best = torch.where(better.reshape(-1, *[1] * (X.dim() - 1)), delta, best)
        highest = torch.where(better, losses, highest).to(highest.dtype)
    return best
