"""What every loader gives, and what they share: the order, each process's rows of a batch, and the refusals."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.data import draws
from robustfast.data.dataset import Dataset
from robustfast.data.fixmatch import rand_augment
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError
from robustfast.ops import augment
from robustfast.registry import lookup
from robustfast.seeds import derive

__all__ = ["Batch", "Feed", "Rows", "processors"]

CROPS = {"pad": "shifted", "resized": "cut out"}


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

    A loader says where the pixels come from; all loaders give the same batches.

    Args:
        dataset: the split to serve.
        batch_size: samples in a batch of all processes, at least 1. The last batch of an epoch is smaller where they do
            not divide.
        seed: the run's seed.
        device: where the batches live.
        augment: crop at random, and mirror half of the images left to right.
        rand_augment: then RandAugment and cutout; see `robustfast.data.fixmatch`.
        crop: "pad" crops after padding by 4 pixels of zeros; "resized" takes a part of an image file, 8 to 100 % of its
            area, and resizes it.
        channels_last: give x in torch.channels_last memory format.
        shuffle: draw a new order in each epoch; else the data set's.
        drop_last: leave out the last batch where it is smaller.
        rank: number of this process, which takes the rows rank * n // world to (rank + 1) * n // world of a batch of n.
        world: number of processes.

    Raises:
        UserError: a batch size below 1, one that leaves no batch, or one with which some batch has no image for a
            process; augmentation of a set whose classes it changes; parts of image files where there are no files.
    """

    def __init__(
        self,
        dataset: Dataset | ImageFiles,
        batch_size: int,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        augment: bool = False,
        rand_augment: bool = False,
        crop: str = "pad",
        channels_last: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        lookup("crop", CROPS, crop)
        _check_batches(len(dataset), dataset.name, batch_size, drop_last, rank, world)
        if (augment or rand_augment) and not dataset.augmentable:
            raise UserError(
                f"{dataset.name}: augmentation mirrors and crops images, which changes what its digits are: "
                f"turn it off with --no-{'augment' if augment else 'rand-augment'}"
            )
        if crop == "resized" and not isinstance(dataset, ImageFiles):
            raise UserError(
                f"--crop resized takes parts of image files, and {dataset.name} is an array of images of one size: "
                f"take --crop pad"
            )
        if crop == "resized" and not augment:
            raise UserError("--crop resized takes a random part of each image: give --augment, or --crop pad")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.augment = augment
        self.rand_augment = rand_augment
        self.crop = crop
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.rank = rank
        self.world = world
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._running: weakref.WeakSet[Generator[Batch]] = weakref.WeakSet()
        self._positions = torch.arange(-(-batch_size // world), device=self.device)

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
            UserError: while they are read, an image file that does not decode.
        """
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected at least 0")
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}, expected 0..{len(self)}, the batches in an epoch")
        batches = self._batches(epoch, start)
        self._running.add(batches)
        return batches

    def close(self) -> None:
        """End the epochs that are under way, and with them the threads and processes that work ahead for them."""
        for batches in list(self._running):
            batches.close()

    def _batches(self, epoch: int, start: int) -> Generator[Batch]:
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

    def _store(self, dataset: Dataset, device: str | torch.device) -> Tensor:
        """The images of an array on `device`, padded where they are cropped, in the layout of the batches.

        A gather is fastest where what it reads lies as what it writes.
        """
        images = dataset.images.to(device)
        if self.augment:
            images = torch.nn.functional.pad(images, (draws.PAD,) * 4)
        return images.contiguous(memory_format=self.memory_format)

    def _take(self, store: Tensor, index: Tensor, epoch: int, dtype: torch.dtype) -> Tensor:
        """The images `index` of a `_store`, cropped and mirrored where that is asked for: [B, C, H, W]."""
        return augment(
            store,
            seed=derive(self.seed, "augment", epoch),
            index=index,
            pad=draws.PAD if self.augment else 0,
            flip=self.augment,
            scale=self.dataset.scale,
            out_dtype=dtype,
            memory_format=self.memory_format,
        )

    def _finish(self, pixels: Tensor, index: Tensor, epoch: int) -> Tensor:
        """What comes after crop and flip, the same for all loaders: uint8 [B, C, H, W] to the batch's x."""
        if self.rand_augment:
            pixels = rand_augment(pixels, index=index, seed=derive(self.seed, "rand_augment", epoch))
        return augment(
            pixels,
            seed=0,
            index=self._positions[: len(pixels)],
            pad=0,
            flip=False,
            scale=self.dataset.scale,
            memory_format=self.memory_format,
        )


def processors() -> int:
    """Processors that each of this machine's processes can call its own, at most 16: more wait for the memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _check_batches(images: int, name: str, batch_size: int, drop_last: bool, rank: int, world: int) -> None:
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}, expected at least 1")
    if drop_last and batch_size > images:
        raise UserError(
            f"a batch size of {batch_size} leaves no whole batch of the {images} images of {name}: "
            f"lower it or keep the last batch"
        )
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank}, expected 0..{world - 1} of {world} processes")
    last = batch_size if drop_last else images % batch_size or min(batch_size, images)
    if last < world:
        raise UserError(
            f"--batch-size {batch_size}: {'a' if last == batch_size else 'the last'} batch of the {images} images of "
            f"{name} has {last}, expected one for each of {world} processes: take another batch size or fewer processes"
        )
