"""Any set of images on disk: ROOT/train/CLASS/*.jpg|png and ROOT/test (or ROOT/val)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from robustfast.data.dataset import Dataset, check_split, require
from robustfast.errors import UserError

__all__ = ["load"]

SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = {"train": ("train",), "test": ("test", "val")}


def load(split: str, data_dir: str | Path | None, *, image_size: int | None = None) -> Dataset:
    """Return a folder's images, decoded once: uint8 [N, C, H, W], C = 1 where all of the split are grey, else 3.

    A class is a folder inside train; labels number them in the order of their names. The samples follow in the order
    of class, then file name. Where both test and val exist, test is taken. Names that start with a dot are no samples;
    any other file that is no .jpg, .jpeg or .png is an error.

    Args:
        split: "train" or "test".
        data_dir: ROOT, or the folder that holds ROOT under the name image_folder.
        image_size: the side in pixels to which every image is brought, by cutting the longer side about its centre and
            bilinear resampling. None: the images must all have one size already.

    Raises:
        UserError: missing folders or images; images of different sizes, unreadable, transparent, or of more than 8 bits
            a channel; a class in test that train lacks; Pillow is missing.
    """
    check_split(split)
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size {image_size}: expected at least 1 pixel")
    require("PIL", "Pillow", "image_folder")
    from robustfast.data.image_file import GREY, decode, read_header

    root = _root(data_dir)
    classes = tuple(folder.name for folder in _folders(root / "train"))
    part = next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)
    if part is None:
        raise UserError(
            f"{root} has no folder test or val, expected one with the classes of {root / 'train'}"
        )
    files, labels = _samples(part, classes)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        sizes, modes = zip(*pool.map(read_header, files), strict=True)
        if image_size is None:
            _check_one_size(files, sizes)
        width, height = sizes[0] if image_size is None else (image_size, image_size)
        channels = 1 if set(modes) <= set(GREY) else 3
        images = np.empty((len(files), channels, height, width), np.uint8)

        def fill(position: int) -> None:
            images[position] = decode(files[position], channels, (width, height))

        list(pool.map(fill, range(len(files))))
    return Dataset(
        name="image_folder", images=torch.from_numpy(images), labels=torch.tensor(labels), classes=classes
    )


def _root(data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise UserError(
            "image_folder needs a folder that holds train/CLASS/*.jpg and test/CLASS/*.jpg: give --data-dir"
        )
    places = (Path(data_dir) / "image_folder", Path(data_dir))
    for place in places:
        if (place / "train").is_dir():
            return place
    raise UserError(
        f"image_folder not found: expected train/CLASS/*.jpg (or .png) and test/CLASS or val/CLASS "
        f"in one of {places[0]}, {places[1]}; give their folder with --data-dir"
    )


def _folders(folder: Path) -> list[Path]:
    """Return the class folders of a split, in the order of their names."""
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    strays = [entry for entry in found if not entry.is_dir()]
    if strays:
        raise UserError(
            f"{strays[0]} is a file, expected only class folders in {folder}; move it into its class"
        )
    if not found:
        raise UserError(f"{folder} is empty, expected a folder of images for each class")
    return found


def _samples(part: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Return the image files of a split and their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for folder in _folders(part):
        if folder.name not in classes:
            raise UserError(
                f"{folder} is a class that train lacks, expected only {', '.join(classes)}; "
                f"rename it, or add images of it to train"
            )
        members = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        for member in members:
            if not member.is_file() or member.suffix.lower() not in SUFFIXES:
                raise UserError(f"{member} is no image, expected {', '.join(SUFFIXES)} files only; remove it")
        if not members:
            raise UserError(
                f"{folder} has no images, expected {', '.join(SUFFIXES)} files; add some or remove it"
            )
        files += members
        labels += [classes.index(folder.name)] * len(members)
    return files, labels


def _check_one_size(files: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> None:
    differing = [position for position, size in enumerate(sizes) if size != sizes[0]]
    if differing:
        other = differing[0]
        raise UserError(
            f"the images differ in size: {files[0]} has {sizes[0][0]}x{sizes[0][1]} pixels, "
            f"{files[other]} has {sizes[other][0]}x{sizes[other][1]} ({len(differing)} of {len(files)} differ from the "
            f"first); resize them to one size or give --image-size"
        )
