"""Serve a data set in batches from uint8 images that stay on the device.

The images are padded once, and every batch is one gather of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.data import draws
from robustfast.data.batches import Batch, Feed
from robustfast.data.dataset import Dataset

__all__ = ["ResidentFeed"]


class ResidentFeed(Feed):
    """A `Feed` whose images, labels and batches all live on its device."""

    def __init__(self, dataset: Dataset, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        images = dataset.images.to(self.device)
        if self.augment:
            images = torch.nn.functional.pad(images, (draws.PAD,) * 4)
        # A gather keeps the layout it reads, so resident images in the batches' own layout spare a copy of each batch.
        self._images = images.contiguous(memory_format=self.memory_format)
        self._labels = dataset.labels.to(self.device)
        # A tensor on the device, not a number: CUDA multiplies by the rounded reciprocal of a number, which moves 126
        # of the 256 grey levels by one ulp against the CPU's quotient.
        self._scale = torch.tensor(dataset.scale, dtype=torch.float32, device=self.device)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        # Drawn for the epoch at once: on a GPU the draws of a batch alone would cost a hundred launches each time.
        samples = torch.arange(len(self.dataset), device=self.device)
        crops = draws.crops(samples, seed=self.seed, epoch=epoch) if self.augment else None
        for index, share in self._rows(epoch, start, self.device):
            pixels = self._images[index] if crops is None else self._crop(index, *crops)
            x = pixels.contiguous(memory_format=self.memory_format) / self._scale
            yield Batch(x, self._labels[index], index, share)

    def _crop(self, index: Tensor, top: Tensor, left: Tensor, mirror: Tensor) -> Tensor:
        """Return uint8 [B, C, H, W] in the memory format of the resident images."""
        windows = self._images.unfold(2, self.dataset.height, 1).unfold(3, self.dataset.width, 1)
        pixels = windows[index, :, top[index], left[index]]
        return torch.where(mirror[index][:, None, None, None], pixels.flip(3), pixels)
