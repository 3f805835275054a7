"""What APGD keeps count of between two steps, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apgd_track"]


def apgd_track(
    x_adv: Tensor,
    grad: Tensor,
    loss: Tensor,
    logits: Tensor,
    y: Tensor,
    *,
    x_best: Tensor,
    grad_best: Tensor,
    loss_best: Tensor,
    x_fooled: Tensor,
    fooled: Tensor,
    loss_last: Tensor,
    increases: Tensor,
    loss_checked: Tensor,
    reduced: Tensor,
    step_size: Tensor,
    x: Tensor | None,
    eps: Tensor | None,
    sparsity: Tensor | None,
    moved: Tensor | None,
    window: Tensor,
    rho: float,
    descend: bool,
    targeted: bool,
) -> None:
    """Take in one iterate [B, ...], in place; all arguments are those of `robustfast.ops.apgd_track`.

    `x`, `eps`, `sparsity` and `moved` are given under l1 and None otherwise.
    """
    sign = -1 if descend else 1
    y1, best = sign * loss, sign * loss_best

    now = (logits.argmax(1) == y) == targeted
    _copy_rows(x_fooled, x_adv, now)
    fooled |= now

    # Also where the best so far is nan: any number is better.
    better = ~y1.isnan() & ~(y1 <= best)
    _copy_rows(x_best, x_adv, better)
    _copy_rows(grad_best, grad, better)
    loss_best.copy_(torch.where(better, loss, loss_best))
    best = sign * loss_best

    increases += y1 > sign * loss_last
    loss_last.copy_(loss)

    # Not torch.where on the bare number: it would copy a number from the host to the device.
    check = torch.ones_like(fooled) & (window > 0)
    if x is None:
        # In float32, as the authors' code compares.
        few = increases.float() <= (window.double() * rho).float()
        stuck = ~reduced & (sign * loss_checked >= best)
        restart = check & (few | stuck)
        step_size.copy_(torch.where(restart, step_size / 2, step_size))
        reduced.copy_(torch.where(check, few | stuck, reduced))
        loss_checked.copy_(torch.where(check, loss_best, loss_checked))
    else:
        n = x[0].numel() if len(x) else 1
        eps = eps + torch.zeros_like(step_size)
        count = (x_best != x).flatten(1).sum(1)
        # count / moved < 0.95, exactly
        restart = check & (20 * count < 19 * moved)
        size, shrunk = sign * step_size, sign * _divide(step_size, 1.5)
        shrunk = torch.minimum(torch.maximum(shrunk, _divide(eps, 10.0)), eps)
        step_size.copy_(sign * torch.where(restart, eps, torch.where(check, shrunk, size)))
        # In float32 whatever the images are, as in the authors' code.
        share = _divide(_divide(count.float(), n), 1.5).to(sparsity.dtype)
        sparsity.copy_(torch.where(check, share, sparsity))
        moved.copy_(torch.where(check, count, moved))
    increases.masked_fill_(check, 0)
    _copy_rows(x_adv, x_best, restart)
    _copy_rows(grad, grad_best, restart)


def _divide(value: Tensor, by: float) -> Tensor:
    # By a tensor: CUDA multiplies by the reciprocal of a number, which rounds twice.
    return value / torch.full_like(value, by)


def _copy_rows(to: Tensor, rows: Tensor, where: Tensor) -> None:
    to.copy_(torch.where(where.reshape(-1, *[1] * (to.dim() - 1)), rows, to))
