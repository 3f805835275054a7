"""One projected gradient ascent step, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pgd_step"]


def pgd_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    step_size: Tensor,
    eps: Tensor,
    *,
    norm: str,
    step: str,
    k: int,
    bounds: tuple[float, float],
) -> Tensor:
    """Ascend from `x_adv` along `grad`, project onto the `norm` ball of radius `eps` around `x`, clip to `bounds`.

    Sums run in float64 and coefficients are rounded once to the dtype of the images, so that the order of a sum, which
    differs between backends, almost never shows in the result.

    Args:
        x_adv, x: [B, ...] float32 or float64.
        grad: [B, ...], any floating dtype.
        step_size, eps: [] or [B], dtype of the images.
        norm: "linf", "l2" or "l1".
        step: "sign", "grad" or "topq".
        k: entries that a "topq" step moves.
        bounds: lowest and highest pixel value.
    """
    g = grad.to(x.dtype)
    g = torch.where(g.isnan(), 0, g)
    delta = x_adv + _step(g, _per_sample(step_size, g), norm, step, k) - x
    return (x + _project(delta, _per_sample(eps, g), norm)).clamp(*bounds)


def _step(g: Tensor, step_size: Tensor, norm: str, step: str, k: int) -> Tensor:
    if step == "sign":
        return step_size * g.sign()
    if step == "topq":
        size = _norm(g, "linf")
        threshold = g.abs().flatten(1).topk(k).values[:, -1].reshape_as(size)
        chosen = torch.where((g.abs() >= threshold) & (g != 0), g.sign(), 0)
        length = _norm(chosen, "l1")
    else:
        size = length = _norm(g, norm)
        chosen = g
    # A zero or infinite gradient has no direction: the sample stays where it is.
    usable = (size > 0) & (size < torch.inf)
    scale = torch.where(usable, step_size.double() / length, 0)
    return (torch.where(usable, chosen, 0) * scale).to(g.dtype)


def _project(delta: Tensor, eps: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -eps), eps)
    length = _norm(delta, norm)
    if norm == "l2":
        return torch.where(length > eps, (delta * (eps.double() / length)).to(delta.dtype), delta)
    shrunk = delta.sign() * (delta.abs() - _l1_threshold(delta, eps)).clamp(min=0)
    return torch.where(length > eps, shrunk.to(delta.dtype), delta)


def _l1_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """The tau with sum(max(|delta| - tau, 0)) = eps: Duchi et al. 2008, figure 1."""
    sizes = delta.abs().flatten(1).double().sort(1, descending=True).values
    rank = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)
    taus = (sizes.cumsum(1) - eps.double().reshape(-1, 1)) / rank
    support = (sizes > taus).sum(1, keepdim=True).clamp(min=1)
    return _per_sample(taus.gather(1, support - 1).squeeze(1), delta)


def _norm(t: Tensor, norm: str) -> Tensor:
    """Norm of each sample in float64, shaped to broadcast against `t`."""
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm(t, order, dim=tuple(range(1, t.dim())), keepdim=True, dtype=torch.float64)


def _per_sample(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value
