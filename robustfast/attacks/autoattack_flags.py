"""What a model's outputs tell of whether attacks can be believed on it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["looks_like_probabilities", "looks_random"]


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether rows sum to one within [0, 1], to the 1e-5 of AutoAttack's check. Waits for the device."""
    slack = 1e-5
    sums = (logits.sum(1) - 1).abs().max() < slack
    return bool(sums & (logits.max() < 1 + slack) & (logits.min() > -slack))


def looks_random(first: Tensor, second: Tensor, y: Tensor) -> bool:
    """Whether two passes over the same images differ: in who is right, or in direction by more than 1e-4.

    AutoAttack's check with two passes instead of five. Waits for the device.
    """
    right = [(logits.argmax(1) == y).sum() for logits in (first, second)]
    one, other = (logits / (logits.norm(dim=1, keepdim=True) + 1e-10) for logits in (first, second))
    return bool((right[0] != right[1]) | (torch.linalg.vector_norm(one - other, dim=1) > 1e-4).any())
