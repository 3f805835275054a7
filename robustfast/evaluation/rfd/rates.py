"""How well scores tell adversarial images from clean ones; adversarial is what is looked for, the positive class."""

from __future__ import annotations

from torch import Tensor

from robustfast.evaluation.auroc import auroc
from robustfast.evaluation.rfd.judge import judged_clean

__all__ = ["rates"]


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
