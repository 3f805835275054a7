"""CD-VAE: what is evaluated of an auto-encoder that splits images, and of classifiers of the parts."""

from __future__ import annotations

from robustfast.evaluation.cdvae import (
    cross,
    detection,
    gamma,
    grey_box,
    images,
    latent,
    norms,
    reconstruction,
    similarity,
    white_box,
)
from robustfast.evaluation.parts import Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = (
    reconstruction.PART,
    norms.PART,
    similarity.PART,
    latent.PART,
    cross.PART,
    detection.PART,
    detection.EQUAL_NOISE,
    grey_box.PART,
    white_box.PART,
    gamma.PART,
    images.PART,
)
"""In the order in which they are made."""
