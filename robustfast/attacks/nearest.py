"""What attacks that look for the nearest adversarial image share: distances, and giving up what lies too far."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.attacks.gradient import largest_entry

__all__ = ["by_row", "distance", "give_up_beyond"]


def by_row(values: Tensor, images: Tensor) -> Tensor:
    """`values` [B] in the shape [B, 1, ...] that broadcasts over `images` [B, ...]."""
    return values.reshape(-1, *[1] * (images.dim() - 1))


def distance(images: Tensor, x: Tensor, norm: str = "l2") -> Tensor:
    """Length [B] of images - x in `norm`."""
    away = images - x
    if norm == "linf":
        length = away.new_empty(len(away))
        largest_entry(away, out=length)
        return length
    return torch.linalg.vector_norm(away, {"l2": 2, "l1": 1}[norm], dim=tuple(range(1, x.dim())))


def give_up_beyond(eps: float | Tensor | None, images: Tensor, x: Tensor, norm: str) -> Tensor:
    """`images`, with x itself where they lie farther from it than `eps`; all of them where eps is None.

    What was found outside the ball says that a nearer image was not found. It is not pulled back into the ball, as
    Foolbox does: the result would mostly be neither adversarial nor near.
    """
    if eps is None:
        return images
    return torch.where(by_row(distance(images, x, norm) <= eps, x), images, x)
