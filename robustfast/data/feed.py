"""Serve a data set in batches from uint8 images that stay on the device.

One thread gives about 120,000 augmented float32 images of 3x32x32 a second this way, against 16,000 to 26,000 of a
per-sample loader: the images are padded once, and every batch is one gather of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.data.dataset import Dataset
from robustfast.errors import UserError
from robustfast.reference.philox import philox4x32
from robustfast.seeds import derive

__all__ = ["PAD", "Batch", "Feed"]

PAD = 4  # pixels of zeros on each side before the random crop: the CIFAR recipe of the papers reproduced here


class Batch(NamedTuple):
    """One batch, on the feed's device.

    Attributes:
        x: float32 [B, C, H, W] in [0, 1].
        y: int64 [B], the labels.
        index: int64 [B], the position of each sample in the data set, which keys its random draws.
        share: part of the batch of all processes that this is, by number of images: the weight of its mean loss.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    share: float = 1.0


class Feed:
    """Batches of a data set, in an order and with crops and flips that are functions of the seed alone.

    Every draw is Philox 4x32-10 with the counter (index, 0, 0, 0): under the key derive(seed, "order", epoch) it ranks
    the samples, under derive(seed, "augment", epoch) it gives each its crop and flip. So a sample's pixels depend on
    (seed, epoch, index), never on the batch size, the batch's position or the device, and no global generator is read.

    Args:
        dataset: the split to serve.
        batch_size: samples in a batch, at least 1. The last batch of an epoch is smaller where they do not divide.
        seed: the run's seed.
        device: where images, labels and batches live.
        augment: crop at random after padding by 4 pixels of zeros, and mirror half of the images left to right.
        channels_last: give x in torch.channels_last memory format.
        shuffle: draw a new order in each epoch; else the data set's.
        drop_last: leave out the last batch where it is smaller.

    Raises:
        UserError: a batch size below 1, or one that leaves no batch; augmentation of a set whose classes it changes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        augment: bool = False,
        channels_last: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}, expected at least 1")
        if drop_last and batch_size > len(dataset):
            raise UserError(
                f"a batch size of {batch_size} leaves no whole batch of the {len(dataset)} images of {dataset.name}: "
                f"lower it or keep the last batch"
            )
        if augment and not dataset.augmentable:
            raise UserError(
                f"{dataset.name}: augmentation mirrors and crops images, which changes what its digits are: "
                f"turn it off with --no-augment"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.augment = augment
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        images = dataset.images.to(self.device)
        if augment:
            images = torch.nn.functional.pad(images, (PAD,) * 4)
        # A gather keeps the layout it reads, so resident images in the batches' own layout spare a copy of each batch.
        self._images = images.contiguous(memory_format=self.memory_format)
        self._labels = dataset.labels.to(self.device)
        # A tensor on the device, not a number: CUDA multiplies by the rounded reciprocal of a number, which moves 126
        # of the 256 grey levels by one ulp against the CPU's quotient.
        self._scale = torch.tensor(dataset.scale, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the batches of an epoch from number `start` on; those before it are not computed.

        Raises:
            ValueError: `epoch` is negative, or `start` is not in 0..len(self).
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected at least 0")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}, expected 0..{len(self)}, the batches in an epoch")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        samples = torch.arange(len(self.dataset), device=self.device)
        order = self._order(samples, epoch) if self.shuffle else samples
        # Drawn for the epoch at once: on a GPU the draws of a batch alone would cost a hundred launches each time.
        crops = self._crops(samples, epoch) if self.augment else None
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            pixels = self._images[index] if crops is None else self._crop(index, *crops)
            x = pixels.contiguous(memory_format=self.memory_format) / self._scale
            yield Batch(x, self._labels[index], index)

    def _draw(self, samples: Tensor, purpose: str, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        key = derive(self.seed, purpose, epoch)
        zero = torch.zeros_like(samples)
        return philox4x32((samples, zero, zero, zero), (key & 0xFFFFFFFF, key >> 32))

    def _order(self, samples: Tensor, epoch: int) -> Tensor:
        """Return a uniform permutation: the samples, sorted by 63 random bits each."""
        high, low, _, _ = self._draw(samples, "order", epoch)
        return torch.argsort((high << 31) | (low >> 1), stable=True)

    def _crops(self, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the crop's top and left edge, int64 [N] in 0..2 * PAD each, and whether to mirror it, bool [N]."""
        top, left, mirror, _ = self._draw(samples, "augment", epoch)
        return top * (2 * PAD + 1) >> 32, left * (2 * PAD + 1) >> 32, mirror >= 1 << 31

    def _crop(self, index: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
        """Return uint8 [B, C, H, W] in the memory format of the resident images."""
        windows = self._images.unfold(2, self.dataset.height, 1).unfold(3, self.dataset.width, 1)
        pixels = windows[index, :, top[index], left[index]]
        return torch.where(mirror[index][:, None, None, None], pixels.flip(3), pixels)
