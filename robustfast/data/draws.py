"""What an epoch draws: the order of the images and the window and mirroring of each, as functions of the seed alone.

Every draw is Philox 4x32-10 with the counter (index, try, 0, 0), so it depends on (seed, epoch, index): never on the
batch size, the loader, the device or the number of processes, and no global generator is read. Only windows need a
second try.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustfast.reference.philox import philox4x32
from robustfast.seeds import derive

__all__ = ["PAD", "centres", "crops", "cut", "order", "windows"]

PAD = 4  # pixels of zeros on each side before the random crop: the CIFAR recipe of the papers reproduced here
AREA = (0.08, 1.0)  # share of the image that a window takes, uniform
ASPECT = (3 / 4, 4 / 3)  # its width over its height, uniform in the logarithm
TRIES = 10


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


def cut(images: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
    """Return uint8 [B, C, H, W]: the windows `crops` drew, out of these images (uint8 [B, C, H, W]), padded here."""
    padded = torch.nn.functional.pad(images, (PAD,) * 4)
    every = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    pixels = every[torch.arange(len(images)), :, top, left]
    return torch.where(mirror[:, None, None, None], pixels.flip(3), pixels)


def windows(sizes: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
    """Return a random part of each image file of `index` (int64 [B]): the crop that ImageNet networks train on.

    As "inception" crops are drawn: a share of the image's area, uniform in `AREA`, and an aspect ratio, log-uniform in
    `ASPECT`, give a width and a height, each rounded to pixels; a pair that does not fit the image is drawn again, up
    to `TRIES` times, and then the largest part about the centre whose aspect is within `ASPECT` is taken. Where it
    fits, the window's place is uniform. Every try has draws of its own (its number is the counter's second word), so
    that which is taken depends on (seed, epoch, index) and the image's size alone.

    Args:
        sizes: int64 [B, 2], (width, height) in pixels of each image.

    Returns:
        int64 [B, 4]: left, top, right, bottom in pixels, the last two exclusive.
    """
    key = derive(seed, "window", epoch)
    tries = torch.arange(TRIES, device=index.device).expand(len(index), TRIES)
    area, aspect, top, left = _words(index[:, None].expand_as(tries), key, tries)
    wide, high = sizes[:, :1], sizes[:, 1:]
    share = AREA[0] + (AREA[1] - AREA[0]) * (area.double() / 2**32)
    low, up = (math.log(bound) for bound in ASPECT)
    root = torch.exp(0.5 * (low + (up - low) * (aspect.double() / 2**32)))
    side = torch.sqrt(share * (wide * high))
    width, height = (side * root).round().long(), (side / root).round().long()
    fits = (width > 0) & (width <= wide) & (height > 0) & (height <= high)
    # argmax gives the first of equal values: the first try that fits.
    chosen = fits.int().argmax(dim=1, keepdim=True)
    width, height, top, left = (values.gather(1, chosen).squeeze(1) for values in (width, height, top, left))
    left, top = left * (sizes[:, 0] - width + 1) >> 32, top * (sizes[:, 1] - height + 1) >> 32
    drawn = torch.stack([left, top, left + width, top + height], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), drawn, _central(sizes))


def centres(sizes: Tensor, width: int, height: int) -> Tensor:
    """Return the largest part of the shape width x height about the centre of images of `sizes` (int64 [B, 2]).

    Returns:
        float64 [B, 4]: left, top, right, bottom in pixels; half pixels where the rest does not divide.
    """
    wide, high = sizes.double().unbind(1)
    across, down = torch.minimum(wide, high * width / height), torch.minimum(high, wide * height / width)
    left, top = (wide - across) / 2, (high - down) / 2
    return torch.stack([left, top, left + across, top + down], dim=1)


def _central(sizes: Tensor) -> Tensor:
    wide, high = sizes.unbind(1)
    width = torch.minimum(wide, (high * ASPECT[1]).round().long().clamp_(min=1))
    height = torch.minimum(high, (wide / ASPECT[0]).round().long().clamp_(min=1))
    left, top = (wide - width) // 2, (high - height) // 2
    return torch.stack([left, top, left + width, top + height], dim=1)


def _words(index: Tensor, key: int, tries: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero = torch.zeros_like(index)
    return philox4x32((index, zero if tries is None else tries, zero, zero), (key & 0xFFFFFFFF, key >> 32))
