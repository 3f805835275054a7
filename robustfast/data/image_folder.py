"""Any set of images on disk: ROOT/train/CLASS/*.jpg|png and ROOT/test (or ROOT/val)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from robustfast.data.dataset import check_split, require
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError

__all__ = ["class_folders", "class_images", "images_in", "load"]

SUFFIXES = (".jpg", ".jpeg", ".png")
FOLDERS = {"train": ("train",), "test": ("test", "val")}


def load(split: str, data_dir: str | Path | None, *, image_size: int | None = None) -> ImageFiles:
    """Return a folder's images, headers read: C = 1 where all of the split are grey, else 3.

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
    root = _root(data_dir)
    classes = tuple(folder.name for folder in class_folders(root / "train"))
    part = next((root / name for name in FOLDERS[split] if (root / name).is_dir()), None)
    if part is None:
        raise UserError(
            f"{root} has no folder test or val, expected one with the classes of {root / 'train'}"
        )
    members: dict[int, list[Path]] = {}
    for folder in class_folders(part):
        if folder.name not in classes:
            raise UserError(
                f"{folder} is a class that train lacks, expected only {', '.join(classes)}; "
                f"rename it, or add images of it to train"
            )
        members[classes.index(folder.name)] = images_in(folder)
    files, labels = class_images(members)
    images = ImageFiles("image_folder", files, labels, classes, image_size)
    # Now rather than in the middle of a training: what cannot be read, and images that differ in size.
    _ = images.sizes, images.height
    return images


def class_folders(folder: Path) -> list[Path]:
    """Return the class folders of a split, in the order of their names.

    Raises:
        UserError: there are none, or files lie between them.
    """
    found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    strays = [entry for entry in found if not entry.is_dir()]
    if strays:
        raise UserError(
            f"{strays[0]} is a file, expected only class folders in {folder}; move it into its class"
        )
    if not found:
        raise UserError(f"{folder} is empty, expected a folder of images for each class")
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the image files of one class, in the order of their names; those that start with a dot are none.

    Raises:
        UserError: there are none, or something else lies between them.
    """
    with os.scandir(
        folder
    ) as entries:  # asks the file system once for a folder, where Path asks for every file
        members = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        for member in members:
            if not member.is_file() or not member.name.lower().endswith(SUFFIXES):
                raise UserError(
                    f"{member.path} is no image, expected {', '.join(SUFFIXES)} files only; remove it"
                )
    if not members:
        raise UserError(
            f"{folder} has no images, expected {', '.join(SUFFIXES)} files; add some or remove it"
        )
    return [Path(member.path) for member in members]


def class_images(members: Mapping[int, list[Path]]) -> tuple[tuple[Path, ...], torch.Tensor]:
    """Return the files of each label one label after the other, and their labels, int64 [N]."""
    files = tuple(file for label in sorted(members) for file in members[label])
    counts = torch.tensor([len(members[label]) for label in sorted(members)])
    return files, torch.tensor(sorted(members)).repeat_interleave(counts)


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
