"""How well scores tell adversarial images from clean ones; adversarial is what is looked for, the positive class."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.evaluation.rfd.judge import judged_clean

__all__ = ["auroc", "rates"]


def rates(clean: Tensor, adversarial: Tensor) -> dict[str, float]:
    """Rates of a detector from the discriminator's logits, high for clean images.

    Args:
        clean: logits [N] of clean images.
        adversarial: logits [M] of adversarial ones.

    Returns:
        "tpr": share of the adversarial images that are judged adversarial, sigmoid below a half; "tnr": share of the
        clean ones that are judged clean; "auroc".

    Raises:
        ValueError: no clean or no adversarial image.
    """
    return {
        "tpr": (~judged_clean(adversarial)).double().mean().item(),
        "tnr": judged_clean(clean).double().mean().item(),
        "auroc": auroc(clean, adversarial),
    }


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """The chance that an adversarial image has a lower logit than a clean one; equal logits count half.

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
