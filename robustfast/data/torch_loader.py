"""Serve images through PyTorch's DataLoader: from the host's memory, or from files that worker processes decode."""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from robustfast.data import draws
from robustfast.data.batches import Batch, Feed, processors
from robustfast.data.dataset import Dataset
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["TorchFeed"]

Key = tuple[int, list[int]]
"""One batch as a `DataLoader` asks for it: the epoch and the numbers of the images."""


class TorchFeed(Feed):
    """A `Feed` whose batches a `torch.utils.data.DataLoader` gathers as bytes, to be scaled on the device."""

    def __init__(self, dataset: Dataset | ImageFiles, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        self._source: data.Dataset[Tensor] | data.Dataset[Tensor | UserError]
        if isinstance(dataset, ImageFiles):
            self._source = _Files(dataset, self.crop, augment=self.augment, seed=self.seed)
            self._workers = processors()
        else:
            # A gather takes less than handing its result over from another process would.
            self._source, self._workers = _Arrays(self, dataset), 0
        self._labels = dataset.labels.to(self.device)

    def _batches(self, epoch: int, start: int) -> Generator[Batch]:
        rows = self._rows(epoch, start, "cpu")
        keys: list[Key] = [(epoch, index.tolist()) for index, _ in rows]
        loader = data.DataLoader(
            self._source,
            sampler=keys,
            batch_size=None,  # a key is a batch
            num_workers=min(self._workers, len(keys)),
            worker_init_fn=_outlive_a_signal,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one
        )
        for (index, share), pixels in zip(rows, loader, strict=True):
            if isinstance(pixels, UserError):
                raise pixels
            index = index.to(self.device, non_blocking=True)
            x = self._finish(pixels.to(self.device, non_blocking=True), index, epoch)
            yield Batch(x, self._labels[index], index, share)


def _outlive_a_signal(worker: int) -> None:
    """Let a worker go on after Ctrl-C, or the SIGTERM of a scheduler, either of which reaches all of a run's processes.

    The training process finishes its step first, for which it may need a batch, and then ends its workers. A second
    SIGTERM, from whoever no longer waits, ends them as ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class _Arrays(data.Dataset[Tensor]):
    """Batches of an array, cropped and mirrored: uint8 [B, C, H, W]."""

    def __init__(self, feed: Feed, dataset: Dataset) -> None:
        self.feed = feed
        self.store = feed._store(dataset, "cpu")

    def __getitem__(self, key: Key) -> Tensor:
        epoch, index = key
        return self.feed._take(self.store, torch.tensor(index), epoch, torch.uint8)


class _Files(data.Dataset["Tensor | UserError"]):
    """Batches of image files, decoded, cropped and mirrored: uint8 [B, C, H, W].

    An error is handed over as a value: raised in a worker, it would arrive with the worker's traceback in its message.
    """

    def __init__(self, dataset: ImageFiles, crop: str, *, augment: bool, seed: int) -> None:
        self.dataset = dataset
        self.sizes = dataset.sizes if crop == "resized" else None
        self.size = (dataset.width, dataset.height)
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: Key) -> Tensor | UserError:
        epoch, numbers = key
        index = torch.tensor(numbers)
        try:
            images = torch.from_numpy(np.stack(self._decoded(index, epoch)))
        except UserError as error:
            return error
        if not self.augment:
            return images
        top, left, mirror = draws.crops(index, seed=self.seed, epoch=epoch)
        if self.sizes is not None:
            top, left = torch.full_like(top, draws.PAD), torch.full_like(left, draws.PAD)
        return draws.cut(images, top, left, mirror)

    def _decoded(self, index: Tensor, epoch: int) -> list[np.ndarray]:
        dataset = self.dataset
        if self.sizes is None:
            return [dataset.read(number) for number in index.tolist()]
        from robustfast.data.image_file import decode

        windows = draws.windows(self.sizes[index], index, seed=self.seed, epoch=epoch)
        return [
            decode(dataset.files[number], dataset.channels, self.size, tuple(window))
            for number, window in zip(index.tolist(), windows.tolist(), strict=True)
        ]
