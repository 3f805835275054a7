"""One step of APGD with its momentum, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.reference.l1_projection import l1_projection

__all__ = ["apgd_step"]

TINY = 1e-12
"""Added to the l2 norm of a gradient before it divides a step."""


def apgd_step(
    x_adv: Tensor,
    x_old: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: Tensor,
    eps: Tensor,
    momentum: Tensor,
    sparsity: Tensor,
    *,
    norm: str,
    bounds: tuple[float, float],
) -> Tensor:
    """Step from `x_adv` along `grad` into ball and box, then mix that step with the last one and project again.

    Under linf every operation and its order are those of the authors' code, so that float results are theirs to the
    bit. Sums run in float64 and coefficients are rounded once to the dtype of the images.

    Args:
        x_adv, x_old, x: [B, ...] float32 or float64.
        grad: [B, ...], any floating dtype.
        step_size, eps, momentum: [] or [B], dtype of the images.
        sparsity: [] or [B], dtype of the images; fraction of the entries that an l1 step moves.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
    """
    g = grad.to(x.dtype)
    g = torch.where(g.isnan(), 0, g)
    step_size, radius, a = (_per_sample(value, x) for value in (step_size, eps, momentum))
    if norm == "l1":
        return _sparse_step(x_adv, g, x, step_size, eps, sparsity, bounds)
    stepped = _project(x_adv + _step(g, step_size, norm), x, radius, norm, bounds)
    moved = x_adv + (stepped - x_adv) * a + (x_adv - x_old) * (1 - a)
    return _project(moved, x, radius, norm, bounds)


def _step(g: Tensor, step_size: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return step_size * g.sign()
    return _along(g, _length(g), step_size, TINY)


def _along(direction: Tensor, length: Tensor, step_size: Tensor, tiny: float = 0.0) -> Tensor:
    # A zero or infinite gradient has no direction.
    usable = (length > 0) & (length < torch.inf)
    scale = torch.where(usable, step_size.double() / (length + tiny), 0)
    return (torch.where(usable, direction, 0) * scale).to(direction.dtype)


def _project(point: Tensor, x: Tensor, eps: Tensor, norm: str, bounds: tuple[float, float]) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(point, x - eps), x + eps).clamp(*bounds)
    delta = point - x
    length = _length(delta)
    delta = torch.where(length > eps, (delta * (eps.double() / length)).to(delta.dtype), delta)
    return (x + delta).clamp(*bounds)


def _sparse_step(
    x_adv: Tensor,
    g: Tensor,
    x: Tensor,
    step_size: Tensor,
    eps: Tensor,
    sparsity: Tensor,
    bounds: tuple[float, float],
) -> Tensor:
    sizes = g.abs().flatten(1).sort(1).values
    n = sizes.shape[1]
    # In float32 whatever the images are: the authors' rounding decides how many entries move.
    rank = ((1 - sparsity.float()) * n).nan_to_num(0).clamp(0, n - 1).long().expand(len(x))
    threshold = _per_sample(sizes.gather(1, rank.unsqueeze(1)).squeeze(1), x)
    chosen = torch.where(g.abs() >= threshold, g.sign(), 0)
    count = chosen.abs().flatten(1).sum(1, dtype=torch.float64)
    infinite = _per_sample(sizes[:, -1] == torch.inf, x)
    length = torch.where(infinite, torch.inf, _per_sample(count, x))
    return l1_projection(x_adv + _along(chosen, length, step_size), x, eps, bounds=bounds)


def _length(t: Tensor) -> Tensor:
    """l2 norm of each sample in float64, shaped to broadcast against `t`."""
    return torch.linalg.vector_norm(t, dim=tuple(range(1, t.dim())), keepdim=True, dtype=torch.float64)


def _per_sample(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value
