"""Find an image whose representation is a given one: what an encoder sees, and the pseudo-inputs of Ilyas et al."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks import eval_mode
from robustfast.ops import pgd_step

__all__ = ["invert"]


def invert(
    encoder: Callable[[Tensor], Tensor],
    target: Tensor,
    start: Tensor,
    *,
    steps: int = 1000,
    step_size: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Minimise ``||g(x) - g(target)||_2 / ||g(target)||_2`` over images x, from `start`.

    Gradient descent with every sample's gradient scaled to l2 norm 1 and a clip to [0, 1] after each step.
    Ilyas et al. 2019 (arXiv:1905.02175, section 3.1) build their robust and non-robust sets this way with 1000
    steps of 0.1, starting from another image; Engstrom et al. 2019 (arXiv:1906.00945) and AAT's figures 2 and 4
    start from noise (10000 steps of 1.0). The encoder runs in eval mode, and no weight gradient is computed.

    Args:
        encoder: g, images [B, C, H, W] -> features [B, H].
        target: images in [0, 1], float32 or float64 [B, C, H, W].
        start: images like `target`.
        steps: gradient steps, from 1.
        step_size: length of a step in pixel units, above 0.

    Returns:
        The images [B, C, H, W], detached, and the ratio above for each of them, [B].

    Raises:
        ValueError: shapes that differ, or a setting out of range.
    """
    if start.shape != target.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}, expected that of target, {tuple(target.shape)}"
        )
    if steps < 1 or not 0 < step_size < math.inf:
        raise ValueError(f"steps {steps} and step_size {step_size}: expected at least 1 and above 0")
    # Images in the box are at most sqrt(n) apart: a ball of this radius never binds, only step and clip act.
    free = math.sqrt(target[0].numel()) + step_size
    with eval_mode(encoder):
        with torch.no_grad():
            wanted = encoder(target)
        x = start.detach().clone()
        for _ in range(steps):
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                # The ratio's denominator is constant for each sample, and the step forgets the gradient's length.
                distance = torch.linalg.vector_norm(encoder(leaf) - wanted, dim=1).sum()
            (grad,) = torch.autograd.grad(distance, leaf)
            pgd_step(x, grad, start, step_size=-step_size, eps=free, norm="l2", out=x)
        with torch.no_grad():
            distance = torch.linalg.vector_norm(encoder(x) - wanted, dim=1)
            return x, distance / torch.linalg.vector_norm(wanted, dim=1)
