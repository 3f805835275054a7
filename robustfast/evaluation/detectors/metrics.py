"""How well scores tell clean images from adversarial ones.

One orientation everywhere: a score is high for clean images, and clean (with noisy) images are the positive class. TPR
is the share of them that is kept, TNR the share of adversarial images that is rejected.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_curve
from torch import Tensor

from robustfast.evaluation.auroc import auroc, check_scores

__all__ = ["aupr", "auroc", "detection_accuracy", "metrics", "tnr_at_tpr"]


def tnr_at_tpr(clean: Tensor, adversarial: Tensor, tpr: float = 0.95) -> float:
    """Share of the adversarial images that a threshold rejects which keeps a share `tpr` of the clean ones.

    The threshold is the lowest clean score that is kept, and an image is rejected below it. Of the shares that the
    scores allow, it is the one next to `tpr`, the larger one of two as near (Lee et al. 2018 take the nearest too).

    Args:
        clean: scores [N].
        adversarial: scores [M].
        tpr: in (0, 1].

    Raises:
        ValueError: scores that are not 1-D, no clean or no adversarial image, a score that is not finite, or `tpr`
            outside (0, 1].
    """
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr {tpr}: expected above 0 and at most 1")
    kept_adversarial, kept_clean = _roc(clean, adversarial)
    # Shares of N have steps of 1/N; what differs by rounding alone is as near.
    miss = np.abs(kept_clean - tpr).round(12)
    near = miss == miss.min()
    near &= kept_clean == kept_clean[near].max()
    return float(1 - kept_adversarial[near].min())


def detection_accuracy(clean: Tensor, adversarial: Tensor) -> float:
    """max over thresholds of ``(TPR + TNR) / 2``: accuracy where both kinds are as frequent.

    Raises:
        ValueError: as of `tnr_at_tpr`.
    """
    kept_adversarial, kept_clean = _roc(clean, adversarial)
    return float((kept_clean + 1 - kept_adversarial).max() / 2)


def aupr(clean: Tensor, adversarial: Tensor, *, positive: str = "clean") -> float:
    """Area under the precision-recall curve, as scikit-learn's average precision (no interpolation).

    Args:
        clean: scores [N].
        adversarial: scores [M].
        positive: "clean" (AUPR-in), or "adversarial" (AUPR-out), then with the scores' signs turned.

    Raises:
        ValueError: as of `tnr_at_tpr`, or another `positive`.
    """
    if positive not in ("clean", "adversarial"):
        raise ValueError(f"positive {positive!r}: expected 'clean' or 'adversarial'")
    truth, scores = _labelled(clean, adversarial)
    if positive == "adversarial":
        truth, scores = 1 - truth, -scores
    return float(average_precision_score(truth, scores))


def metrics(clean: Tensor, adversarial: Tensor) -> dict[str, float]:
    """All of them, fractions: "tnr" (at a TPR of 0.95), "auroc", "dtacc", "aupr_in", "aupr_out".

    Args:
        clean: scores [N] of clean and noisy images, high for clean.
        adversarial: scores [M].

    Raises:
        ValueError: as of `tnr_at_tpr`.
    """
    return {
        "tnr": tnr_at_tpr(clean, adversarial),
        "auroc": auroc(clean, adversarial),
        "dtacc": detection_accuracy(clean, adversarial),
        "aupr_in": aupr(clean, adversarial),
        "aupr_out": aupr(clean, adversarial, positive="adversarial"),
    }


def _roc(clean: Tensor, adversarial: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the adversarial and of the clean images at or above each threshold."""
    false, true, _ = roc_curve(*_labelled(clean, adversarial), drop_intermediate=False)
    return false, true


def _labelled(clean: Tensor, adversarial: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    check_scores(clean, adversarial)
    scores = np.concatenate([part.detach().double().cpu().numpy() for part in (clean, adversarial)])
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return np.repeat(np.array([1, 0]), [len(clean), len(adversarial)]), scores
