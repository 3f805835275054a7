"""One split of a data set that lies on disk as one file per image, none of them decoded yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustfast.data.dataset import Dataset, require
from robustfast.errors import UserError

__all__ = ["ImageFiles"]

CHUNK = 64
"""Files to a task of a pool: handing a task over costs about as much as reading one header."""
THREADS = 8
"""On two processors as fast as fewer where the files are in memory, and faster where a disk has to find them."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """One split of a data set as files, with the sizes and names a `Dataset` has: pixels alone are missing.

    Headers are read when the first question needs them (`sizes`; `channels` where it is not given; `height` and `width`
    without an image size), all files at once and in parallel, then kept.

    Attributes:
        name: the registered name, for messages and run folders.
        files: the N image files, in the order of the samples.
        labels: int64 [N], each in 0..num_classes-1.
        classes: the name of each class, in label order.
        image_size: the side in pixels to which every image is brought, by cutting the longer side about its centre and
            bilinear resampling. None: the images must all have one size already.
        given_channels: 1 or 3, what `channels` shall be; None: 1 where all images are grey, else 3.
        augmentable: whether a cropped and mirrored image keeps its class.
        scale: the grey level that maps to 1.0.

    Raises:
        ValueError: no files, labels of another dtype or shape or out of range, another number of channels.
        UserError: an image size below one pixel; Pillow is missing.
    """

    name: str
    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    image_size: int | None = None
    given_channels: int | None = None
    augmentable: bool = True
    scale: ClassVar[float] = 255.0

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image-size {self.image_size}: expected at least 1 pixel")
        if not self.files:
            raise ValueError(f"{self.name}: expected at least one image file")
        labels = self.labels
        if labels.dtype != torch.int64 or labels.shape != (len(self.files),):
            raise ValueError(
                f"{self.name}: labels are {labels.dtype} {list(labels.shape)}, expected torch.int64 [{len(self.files)}]"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"{self.name}: labels span {low}..{high}, expected 0..{self.num_classes - 1}")
        if self.given_channels not in (None, 1, 3):
            raise ValueError(f"{self.name}: {self.given_channels} channels, expected 1 or 3")
        require("PIL", "Pillow", self.name)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        """1 or 3, read from the headers where it was not given.

        Raises:
            UserError: a header that has to be read and cannot be; see `sizes`.
        """
        if self.given_channels is not None:
            return self.given_channels
        return 1 if all(self._headers[1]) else 3

    @property
    def height(self) -> int:
        """Of the images as decoded, in pixels.

        Raises:
            UserError: without an image size, where files differ in size; see `sizes` too.
        """
        return self._size[1]

    @property
    def width(self) -> int:
        """As `height`."""
        return self._size[0]

    @property
    def sizes(self) -> Tensor:
        """int64 [N, 2]: (width, height) of each file, in pixels.

        Raises:
            UserError: an unreadable file, transparency, or more than 8 bits a channel.
        """
        return self._headers[0]

    @property
    def decoded_bytes(self) -> int:
        """What `decode` would take of memory."""
        return len(self) * self.channels * self.height * self.width

    def coloured(self) -> ImageFiles:
        """The same images in three channels; grey ones have the same grey in each."""
        images = replace(self, given_channels=3)
        for known in ("_headers", "_size"):
            if known in self.__dict__:
                images.__dict__[known] = self.__dict__[known]
        return images

    def take(self, indices: Tensor) -> ImageFiles:
        """The samples at `indices` (int64 [M]), in that order, as the same kind of data set.

        They keep the channels and the size of the whole, so that a part fits the model of the whole.
        """
        rows = indices.tolist()
        part = replace(
            self,
            files=tuple(self.files[row] for row in rows),
            labels=self.labels[indices],
            given_channels=self.channels,
        )
        if self.image_size is None:
            part.__dict__["_size"] = self._size
        if "_headers" in self.__dict__:
            sizes, grey = self._headers
            part.__dict__["_headers"] = (sizes[indices], [grey[row] for row in rows])
        return part

    def read(self, position: int) -> np.ndarray:
        """Decode one file to uint8 [C, H, W].

        Raises:
            UserError: damaged or truncated image data, transparency, or more than 8 bits a channel.
        """
        from robustfast.data.image_file import decode

        return decode(self.files[position], self.channels, self._size)

    def decode(self) -> Dataset:
        """Decode every file, in parallel.

        Raises:
            UserError: as `read`, `channels` and `height`.
        """
        images = np.empty((len(self), self.channels, self.height, self.width), np.uint8)

        def fill(position: int) -> None:
            images[position] = self.read(position)

        _each(fill, range(len(self)))
        return Dataset(
            name=self.name,
            images=torch.from_numpy(images),
            labels=self.labels,
            classes=self.classes,
            augmentable=self.augmentable,
        )

    @cached_property
    def _headers(self) -> tuple[Tensor, list[bool]]:
        """(width, height) of each file, int64 [N, 2], and whether it is grey."""
        from robustfast.data.image_file import GREY, read_header

        sizes = torch.empty(len(self), 2, dtype=torch.int64)
        grey = [False] * len(self)

        def read(position: int) -> None:
            size, mode = read_header(self.files[position])
            sizes[position, 0], sizes[position, 1] = size
            grey[position] = mode in GREY

        _each(read, range(len(self)))
        return sizes, grey

    @cached_property
    def _size(self) -> tuple[int, int]:
        """(width, height) of the images as decoded."""
        if self.image_size is not None:
            return self.image_size, self.image_size
        sizes = self.sizes
        differing = (sizes != sizes[0]).any(dim=1).nonzero().flatten()
        if len(differing):
            other = int(differing[0])
            raise UserError(
                f"the images differ in size: {self.files[0]} has {sizes[0, 0]}x{sizes[0, 1]} pixels, "
                f"{self.files[other]} has {sizes[other, 0]}x{sizes[other, 1]} ({len(differing)} of {len(self)} differ "
                f"from the first); resize them to one size or give --image-size"
            )
        return int(sizes[0, 0]), int(sizes[0, 1])


def _each(work: Callable[[int], None], positions: range) -> None:
    """Do `work` for every position on all processors; an error is the one of the first position that has one."""

    def chunk(start: int) -> None:
        for position in positions[start : start + CHUNK]:
            work(position)

    with ThreadPoolExecutor(
        max(THREADS, os.cpu_count() or 1)
    ) as pool:  # Pillow reads and decodes outside the interpreter's lock
        list(pool.map(chunk, range(0, len(positions), CHUNK)))
