"""What an epoch draws: the order of the images and the window and mirroring of each, as functions of the seed alone.

Every draw is Philox 4x32-10 with the counter (index, 0, 0, 0), so it depends on (seed, epoch, index): never on the
batch size, the loader, the device or the number of processes, and no global generator is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.reference.philox import philox4x32
from robustfast.seeds import derive

__all__ = ["PAD", "crops", "order"]

PAD = 4  # pixels of zeros on each side before the random crop: the CIFAR recipe of the papers reproduced here


def order(count: int, *, seed: int, epoch: int, device: str | torch.device = "cpu") -> Tensor:
    """Return a uniform permutation of `count` samples, int64: they are sorted by 63 random bits each."""
    samples = torch.arange(count, device=device)
    high, low, _, _ = _words(samples, derive(seed, "order", epoch))
    return torch.argsort((high << 31) | (low >> 1), stable=True)


def crops(index: Tensor, *, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the window of each sample of `index` (int64 [B]) in its image padded by `PAD`.

    Returns:
        The window's top and left edge, int64 [B] in 0..2 * PAD each, and whether to mirror it then, bool [B].
    """
    top, left, mirror, _ = _words(index, derive(seed, "augment", epoch))
    return top * (2 * PAD + 1) >> 32, left * (2 * PAD + 1) >> 32, mirror >= 1 << 31


def _words(index: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero = torch.zeros_like(index)
    return philox4x32((index, zero, zero, zero), (key & 0xFFFFFFFF, key >> 32))
