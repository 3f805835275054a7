"""Keep the strongest of several images of each sample, without looking at a value."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Strongest", "strongest"]


class Strongest:
    """The strongest image so far of each sample: fooled before not fooled, then by loss, then the earlier one.

    Attributes:
        images: [B, ...].
        fooled: bool [B].
    """

    def __init__(self, images: Tensor, loss: Tensor, fooled: Tensor) -> None:
        self.images, self.fooled = images.clone(), fooled.clone()
        self._loss = _ranked(loss)

    def add(self, images: Tensor, loss: Tensor, fooled: Tensor) -> None:
        """Take in further images [B, ...], with the loss [B] that grows with their strength, nan being the weakest."""
        loss = _ranked(loss)
        better = torch.where(fooled == self.fooled, loss > self._loss, fooled)
        torch.where(better.reshape(-1, *[1] * (images.dim() - 1)), images, self.images, out=self.images)
        self._loss = torch.where(better, loss, self._loss)
        self.fooled |= fooled


def strongest(best: Strongest | None, images: Tensor, loss: Tensor, fooled: Tensor) -> Strongest:
    """`best` with further images taken in, arguments as of `Strongest.add`; None holds none yet."""
    if best is None:
        return Strongest(images, loss, fooled)
    best.add(images, loss, fooled)
    return best


def _ranked(loss: Tensor) -> Tensor:
    return torch.nan_to_num(loss, nan=-torch.inf)
