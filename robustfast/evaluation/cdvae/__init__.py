"""CD-VAE: what is evaluated of an auto-encoder that splits images, and of classifiers of the parts."""

from __future__ import annotations

from robustfast.evaluation.parts import Part

__all__ = ["PARTS"]

PARTS: tuple[Part, ...] = ()
"""In the order in which they are made."""
