"""The divergence of a diagonal Gaussian from the standard one; `robustfast.ops.reparameterise` draws besides."""

from __future__ import annotations

from torch import Tensor

__all__ = ["kl_divergence"]


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp log_variance) | N(0, I)) of each row: [B, L] twice -> [B].

    Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
    """
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
