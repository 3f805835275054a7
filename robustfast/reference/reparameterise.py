"""Draws from a diagonal Gaussian and its divergence from the standard one, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustfast.reference.philox import MASK, philox4x32

__all__ = ["reparameterise", "reparameterise_backward"]

# The second word of the counter, as of the first draws of `robustfast.attacks.draws`, whose normal numbers these are.
_PURPOSE = 3


def reparameterise(
    mean: Tensor, log_variance: Tensor, seed: int, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """z = mean + shift, the divergence of each row, and shift = exp(log_variance / 2) * noise, which backward needs.

    All in float64 and rounded once, so that backends hardly show by the order of a sum or a library's exponential.

    Args:
        mean, log_variance: [B, L] float32 or float64.
        seed: 0 <= seed < 2**63.
        index: int64 [B], the sample's number in the data set.

    Returns:
        z [B, L], the divergence [B], shift [B, L], in the dtype of mean.
    """
    mu, log = mean.double(), log_variance.double()
    spread = (log / 2).exp()
    shift = spread * _normal(seed, index, mean.shape[1])
    divergence = 0.5 * (mu.square() + spread.square() - 1 - log).sum(1)
    return (mu + shift).to(mean.dtype), divergence.to(mean.dtype), shift.to(mean.dtype)


def reparameterise_backward(
    grad_z: Tensor, grad_divergence: Tensor, mean: Tensor, log_variance: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of mean and of log_variance [B, L], in float64 and rounded once.

    Args:
        grad_z: [B, L].
        grad_divergence: [B].
        mean, log_variance, shift: as of the forward.
    """
    d_z, d_row = grad_z.double(), grad_divergence.double()[:, None]
    d_mean = d_z + d_row * mean.double()
    d_log = 0.5 * (d_z * shift.double() + d_row * (log_variance.double().exp() - 1))
    return d_mean.to(mean.dtype), d_log.to(mean.dtype)


def _normal(seed: int, index: Tensor, n: int) -> Tensor:
    """Standard normal draws, float64 [B, n]: Box and Muller 1958, word e for a radius and word n + e for its angle."""
    quads = torch.arange((2 * n + 3) // 4, device=index.device)
    sample = index[:, None]
    counter = (quads, torch.full_like(quads, _PURPOSE), sample & MASK, sample >> 32 & MASK)
    words = torch.stack(philox4x32(counter, (seed & MASK, seed >> 32)), dim=-1).flatten(1)
    uniform = (words.double() + 0.5) * 2**-32
    return (-2 * uniform[:, :n].log()).sqrt() * (2 * math.pi * uniform[:, n : 2 * n]).cos()
