"""What every format loads into, and the checks that every format shares."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from robustfast.errors import UserError

__all__ = ["SPLITS", "Dataset", "check_bytes", "check_labels", "check_split", "read_bytes", "require"]

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, whole in memory.

    Attributes:
        name: the registered name, for messages and run folders.
        images: uint8 [N, C, H, W], contiguous.
        labels: int64 [N], each in 0..num_classes-1.
        classes: the name of each class, in label order.
        scale: the grey level that maps to 1.0, so x = images / scale (255; 16 for digits).
        augmentable: whether a cropped and mirrored image keeps its class; false for digits, whose mirror images are
            none.

    Raises:
        ValueError: a field of another dtype or shape, labels or grey levels out of range.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    scale: float = 255.0
    augmentable: bool = True

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if (
            images.dtype != torch.uint8
            or images.dim() != 4
            or not images.is_contiguous()
            or not images.numel()
        ):
            raise ValueError(
                f"{self.name}: images are {images.dtype} {list(images.shape)}, "
                f"expected contiguous torch.uint8 [N, C, H, W] with at least one image"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels are {labels.dtype} {list(labels.shape)}, expected torch.int64 [{len(images)}]"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"{self.name}: labels span {low}..{high}, expected 0..{self.num_classes - 1}")
        if int(images.max()) > self.scale:
            raise ValueError(
                f"{self.name}: grey level {int(images.max())}, expected at most scale = {self.scale:g}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def height(self) -> int:
        return self.images.shape[2]

    @property
    def width(self) -> int:
        return self.images.shape[3]

    def take(self, indices: Tensor) -> Dataset:
        """The samples at `indices` (int64 [M]), in that order, as the same kind of data set."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def decode(self) -> Dataset:
        """Itself: what an `ImageFiles` becomes by its method of this name."""
        return self


def check_split(split: str) -> None:
    """Raise UserError unless `split` is "train" or "test"."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: expected 'train' or 'test'")


def require(module: str, package: str, name: str) -> ModuleType:
    """Import what only the data set `name` needs; UserError with the command that installs `package` without it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{name} needs {package}, which does not import ({error!r}): pip install {package}"
        ) from error


def read_bytes(path: Path) -> bytes:
    """Return the whole file; UserError where the system refuses it (permissions, a folder, a failing disk)."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it a readable file") from error


def check_bytes(path: Path, found: int, expected: int, holding: str) -> None:
    """Raise UserError unless `found` bytes are exactly the `expected` ones; `holding` says what those are."""
    if found != expected:
        fault = "truncated" if found < expected else "too long"
        raise UserError(
            f"{path} is {fault}: found {found} bytes, expected {expected} ({holding}); "
            f"replace it with the published file"
        )


def check_labels(path: Path, labels: np.ndarray, lowest: int, highest: int) -> None:
    """Raise UserError naming the first of `labels` (integer [N]) outside lowest..highest, and its position from 0."""
    wrong = np.flatnonzero((labels < lowest) | (labels > highest))
    if wrong.size:
        raise UserError(
            f"{path}: label {labels[wrong[0]]} at position {wrong[0]} is out of range, expected {lowest}..{highest}; "
            f"replace it with the published file"
        )
