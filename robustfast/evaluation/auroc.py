"""The area under the curve of a detector whose scores are high for clean images."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["auroc", "check_scores"]


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """The chance that an adversarial image has a lower score than a clean one; equal scores count half.

    Args:
        clean: scores [N].
        adversarial: scores [M].

    Raises:
        ValueError: scores of another shape, or no clean or no adversarial image.
    """
    check_scores(clean, adversarial)
    ordered = clean.double().sort().values
    scores = adversarial.double()
    below = torch.searchsorted(ordered, scores, right=False)
    up_to = torch.searchsorted(ordered, scores, right=True)
    # Of each adversarial image the clean ones above it, and half of those level with it.
    above = len(ordered) - (below + up_to).double() / 2
    return (above.mean() / len(ordered)).item()


def check_scores(clean: Tensor, adversarial: Tensor) -> None:
    """Refuse what is not one score for each of some clean and some adversarial images.

    Raises:
        ValueError: as of `auroc`.
    """
    for name, scores in (("clean", clean), ("adversarial", adversarial)):
        if scores.dim() != 1:
            raise ValueError(
                f"{name} scores of shape {tuple(scores.shape)}: expected [N], one for each image; of scores by layer, "
                "pick a column such as scores[:, -1]"
            )
    if not len(clean) or not len(adversarial):
        raise ValueError(
            f"{len(clean)} clean and {len(adversarial)} adversarial images: expected some of each"
        )
