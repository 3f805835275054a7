"""Data sets: `load` reads any format into a uint8 `Dataset` or `ImageFiles`, and `feed` serves it in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from robustfast.data import (
    digits,
    fashion_mnist,
    image_folder,
    imagenette,
    mnist,
    restricted_imagenet,
    svhn,
    tiny_imagenet,
)
from robustfast.data.cifar import load_cifar10, load_cifar100
from robustfast.data.dataset import SPLITS, Dataset
from robustfast.data.feed import Batch, Feed, feed
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError
from robustfast.registry import lookup

__all__ = ["DATASETS", "SPLITS", "Batch", "Dataset", "Feed", "ImageFiles", "feed", "load"]

DATASETS: Mapping[str, Callable[..., Dataset | ImageFiles]] = MappingProxyType(
    {
        "digits": digits.load,
        "mnist": mnist.load,
        "fashion_mnist": fashion_mnist.load,
        "cifar10": load_cifar10,
        "cifar100": load_cifar100,
        "svhn": svhn.load,
        "image_folder": image_folder.load,
        "tiny_imagenet": tiny_imagenet.load,
        "imagenette": imagenette.load,
        "restricted_imagenet": restricted_imagenet.load,
    }
)
OF_IMAGE_FILES = ("image_folder", "tiny_imagenet", "imagenette", "restricted_imagenet")
"""Those whose images can be brought to another size."""


def load(
    name: str, split: str, data_dir: str | Path | None = None, *, image_size: int | None = None
) -> Dataset | ImageFiles:
    """Load one split of a data set, checked: arrays whole in memory, images on disk as their files.

    Args:
        name: one of `DATASETS`.
        split: "train" or "test".
        data_dir: the folder searched for the set's files, itself and its subfolders with the set's usual names;
            not needed for digits.
        image_size: for sets of image files alone, the side to which images are resized; None: the set's own default.

    Raises:
        UserError: an unknown name or split, missing, truncated or corrupt files, labels out of range.
    """
    loader = lookup("data set", DATASETS, name)
    if image_size is None:
        return loader(split, data_dir)
    if name not in OF_IMAGE_FILES:
        raise UserError(
            f"--image-size {image_size} is for {', '.join(OF_IMAGE_FILES)}; the images of {name} have one size: "
            f"leave it out"
        )
    return loader(split, data_dir, image_size=image_size)
