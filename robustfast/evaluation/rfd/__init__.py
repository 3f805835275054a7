"""The protocol of "Exploring Robust Features for Improving Adversarial Robustness" (RFD): a file for each part."""

from __future__ import annotations

from robustfast.evaluation.parts import Part
from robustfast.evaluation.rfd import (
    adaptive,
    angles,
    black_box,
    detection,
    gradcam,
    histograms,
    iterations,
    knn,
    nominal,
    routed,
    tsne,
)

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
    nominal.PART,
    black_box.PART,
    iterations.PART,
    knn.PART,
    angles.PART,
    detection.PART,
    adaptive.PART,
    routed.PART,
    gradcam.PART,
    histograms.PART,
    tsne.PART,
)
"""In the order they are made: a later part may read the numbers of an earlier one."""
