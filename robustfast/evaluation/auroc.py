"""The area under the curve of a detector whose scores are high for clean images."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["auroc"]


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """The chance that an adversarial image has a lower score than a clean one; equal scores count half.

    Args:
        clean: scores [N].
        adversarial: scores [M].

    Raises:
        ValueError: no clean or no adversarial image.
    """
    if not len(clean) or not len(adversarial):
        raise ValueError(
            f"{len(clean)} clean and {len(adversarial)} adversarial images: expected some of each"
        )
    ordered = clean.double().sort().values
    scores = adversarial.double()
    below = torch.searchsorted(ordered, scores, right=False)
    up_to = torch.searchsorted(ordered, scores, right=True)
    # Of each adversarial image the clean ones above it, and half of those level with it.
    above = len(ordered) - (below + up_to).double() / 2
    return (above.mean() / len(ordered)).item()
