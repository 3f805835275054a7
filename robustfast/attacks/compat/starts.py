"""Starts that peers draw otherwise than `random_start`: each adapter keeps its library's law."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.attacks.draws import normal, uniform

__all__ = ["box_then_ball", "noise", "sphere_by_radius"]


def noise(x: Tensor, key: int) -> Tensor:
    """Standard normal noise like `x`."""
    draws = normal(torch.arange(len(x), device=x.device), tuple(x.shape[1:]), seed=key)
    return draws.to(x.dtype)


def sphere_by_radius(x: Tensor, key: int) -> Tensor:
    """A uniform direction times a uniform radius in [0, 1): torchattacks and robust_overfitting, under l2.

    Denser in the middle than a uniform draw from the ball.
    """
    direction = noise(x, key)
    length = direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
    radius = uniform(torch.arange(len(x), device=x.device), (1,) * (x.dim() - 1), seed=key, step=1)
    return direction * (radius.to(x.dtype) / length)


def box_then_ball(x: Tensor, eps: float | Tensor, bounds: tuple[float, float], key: int) -> Tensor:
    """A uniform point of the box, pulled into the l2 ball around x: the l2 start of advertorch, mostly on its edge."""
    lo, hi = bounds
    index = torch.arange(len(x), device=x.device)
    draws = uniform(index, tuple(x.shape[1:]), seed=key, dtype=x.dtype)
    delta = lo + (hi - lo) * draws - x
    eps = eps.reshape(-1) if isinstance(eps, Tensor) else eps
    shrink = (eps / delta.flatten(1).norm(dim=1)).clamp(max=1)
    return (x + delta * shrink.reshape(-1, *[1] * (x.dim() - 1))).clamp(lo, hi)
