"""The margin between logits, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.reference.ranking import inside, largest, wide

__all__ = ["margin_loss", "margin_loss_backward"]


def margin_loss(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    """min(max_{j != y} z_j - z_y, kappa), or min(z_target - z_y, kappa); nan where a label is no class.

    Args:
        logits: [B, K], counted in float32 at least.
        y, target: int64 [B].
        kappa: largest value.

    Returns:
        [B], float32, or float64 for float64 logits.
    """
    margin, _, _, known = _margin(wide(logits), y, target)
    return torch.where(known, margin.clamp(max=kappa), torch.nan)


def margin_loss_backward(
    grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None, kappa: float
) -> Tensor:
    """Gradient of the logits [B, K]: `grad` at the other class, -`grad` at y, nothing where the margin exceeds kappa.

    At a margin of exactly kappa it passes, as in `torch.clamp`.
    """
    margin, other, own, known = _margin(wide(logits), y, target)
    slope = torch.where(margin > kappa, 0, grad)[:, None]
    columns = torch.arange(logits.shape[1], device=logits.device)
    rows = torch.where(columns == other[:, None], slope, 0) - torch.where(columns == own[:, None], slope, 0)
    return torch.where(known[:, None], rows, torch.nan).to(logits.dtype)


def _margin(z: Tensor, y: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The margin [B], the classes it is taken between, and whether the labels are classes."""
    own, known = inside(y, z.shape[1])
    if target is None:
        _, classes = largest(z, 2)
        other = torch.where(classes[:, 0] == own, classes[:, 1], classes[:, 0])
    else:
        other, there = inside(target, z.shape[1])
        known = known & there
    pair = z.gather(1, torch.stack([other, own], 1))
    return pair[:, 0] - pair[:, 1], other, own, known
