"""Serve images that stay on the device, as bytes: every batch is one pass over memory."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from robustfast.data.batches import Batch, Feed
from robustfast.data.dataset import Dataset
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["ResidentFeed"]


class ResidentFeed(Feed):
    """A `Feed` that keeps all images on its device as uint8, padded once; image files are decoded when it is built.

    Raises:
        UserError: as `Feed`; random parts of image files, which a decoded image no longer has.
    """

    def __init__(self, dataset: Dataset | ImageFiles, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        if self.crop == "resized":
            raise UserError(
                "--loader resident decodes each image file once, at one size, and --crop resized takes another part of "
                "it in each epoch: take --loader dali or --loader torch"
            )
        images = dataset.decode() if isinstance(dataset, ImageFiles) else dataset
        self._images = self._store(images, self.device)
        self._labels = images.labels.to(self.device)

    def _batches(self, epoch: int, start: int) -> Generator[Batch]:
        for index, share in self._rows(epoch, start, self.device):
            if self.rand_augment:
                x = self._finish(self._take(self._images, index, epoch, torch.uint8), index, epoch)
            else:
                x = self._take(self._images, index, epoch, torch.float32)
            yield Batch(x, self._labels[index], index, share)
