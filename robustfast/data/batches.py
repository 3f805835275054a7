"""What every loader gives, and what they share: the order, each process's rows of a batch, and the refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.data import draws
from robustfast.data.dataset import Dataset
from robustfast.errors import UserError

__all__ = ["Batch", "Feed", "Rows"]


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


class Rows(NamedTuple):
    """What this process takes of one batch: int64 [B] sample numbers, and its share of the batch of all processes."""

    index: Tensor
    share: float


class Feed:
    """Batches of a data set, in an order and with crops and flips that are functions of the seed alone.

    Args:
        dataset: the split to serve.
        batch_size: samples in a batch of all processes, at least 1. The last batch of an epoch is smaller where they do
            not divide.
        seed: the run's seed.
        device: where the batches live.
        augment: crop at random after padding by 4 pixels of zeros, and mirror half of the images left to right.
        channels_last: give x in torch.channels_last memory format.
        shuffle: draw a new order in each epoch; else the data set's.
        drop_last: leave out the last batch where it is smaller.
        rank: number of this process, which takes the rows rank * n // world to (rank + 1) * n // world of a batch of n.
        world: number of processes.

    Raises:
        UserError: a batch size below 1, or one that leaves no batch, or a process without an image in some batch;
            augmentation of a set whose classes it changes.
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
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}, expected at least 1")
        if drop_last and batch_size > len(dataset):
            raise UserError(
                f"a batch size of {batch_size} leaves no whole batch of the {len(dataset)} images of {dataset.name}: "
                f"lower it or keep the last batch"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank is {rank}, expected 0..{world - 1} of {world} processes")
        last = len(dataset) % batch_size or batch_size
        smallest = batch_size if drop_last else min(last, len(dataset))
        if smallest < world:
            what = "a batch" if smallest == batch_size else "the last batch"
            raise UserError(
                f"--batch-size {batch_size}: {what} of the {len(dataset)} images of {dataset.name} has {smallest} for "
                f"{world} processes, expected one for each: take another batch size or fewer processes"
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
        self.rank = rank
        self.world = world
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    @property
    def images(self) -> int:
        """Images in an epoch, those of all processes."""
        return min(len(self) * self.batch_size, len(self.dataset))

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

    def close(self) -> None:
        """Stop the threads and processes of the loader; nothing where it has none."""

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        raise NotImplementedError

    def _rows(self, epoch: int, start: int, device: str | torch.device) -> list[Rows]:
        """What this process takes of each batch of the epoch from number `start` on, the numbers on `device`."""
        count = len(self.dataset)
        samples = (
            draws.order(count, seed=self.seed, epoch=epoch, device=device)
            if self.shuffle
            else torch.arange(count, device=device)
        )
        rows = []
        for batch in range(start, len(self)):
            first = batch * self.batch_size
            size = min(self.batch_size, count - first)
            low, high = self.rank * size // self.world, (self.rank + 1) * size // self.world
            rows.append(Rows(samples[first + low : first + high], (high - low) / size))
        return rows
