"""Draws from a diagonal Gaussian, and its divergence from the standard one."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.attacks.draws import normal

__all__ = ["drawn", "kl_divergence"]


def drawn(mean: Tensor, log_variance: Tensor, *, seed: int, index: Tensor) -> Tensor:
    """``mean + exp(log_variance / 2) * noise``: samples [B, L] of N(mean, diag exp log_variance), differentiable.

    Args:
        mean, log_variance: [B, L].
        seed: of the draw.
        index: int64 [B], each sample's number in the data set: the noise is a function of (seed, index).
    """
    noise = normal(index, mean.shape[1:], seed=seed, dtype=mean.dtype)
    return mean + torch.exp(log_variance / 2) * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) | N(0, I)) of each row: [B, L] twice -> [B].

    Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
