"""Tiny ImageNet: 200 classes of ImageNet in 64x64 pixels, 500 training and 50 validation images of each.

Source: Stanford's course CS231n, at the page in `PUBLISHED`. The 10,000 images of its folder test have no labels.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from robustfast.data.dataset import read_bytes
from robustfast.data.image_files import ImageFiles
from robustfast.data.image_folder import class_images, images_in
from robustfast.data.image_tree import FOLDERS, check_complete, class_folder, find_root
from robustfast.errors import UserError

__all__ = ["load"]

PUBLISHED = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
WANTED = "wnids.txt, words.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt"
PLACES = ("tiny-imagenet-200", "tiny_imagenet/tiny-imagenet-200", "tiny_imagenet", ".")
IMAGE_SIZE = 64


def load(split: str, data_dir: str | Path | None, *, image_size: int | None = None) -> ImageFiles:
    """Return Tiny ImageNet; its validation images are the test split.

    Labels number the WordNet ids of wnids.txt in sorted order, the samples follow in the order of class, then file
    name. Where the lists of boxes lie beside the training images, every image that they list must be there.

    Args:
        split: "train" or "test".
        data_dir: the folder with the set's files, or one that holds it under its published name.
        image_size: the side in pixels to which images are brought; None: 64, theirs.

    Raises:
        UserError: missing or damaged lists, missing classes or images.
    """
    root = find_root("tiny_imagenet", split, data_dir, PLACES, WANTED, PUBLISHED)
    classes = _classes(root)
    read = _train if split == "train" else _val
    files, labels = class_images(dict(enumerate(read(root / FOLDERS[split], classes))))
    size = IMAGE_SIZE if image_size is None else image_size
    return ImageFiles("tiny_imagenet", files, labels, tuple(classes.values()), size, given_channels=3)


def _classes(root: Path) -> dict[str, str]:
    """Return the name of each class by WordNet id, sorted by it."""
    wnids = sorted(row[0] for row in _rows(root / "wnids.txt", 1))
    twice = [wnid for wnid, following in pairwise(wnids) if wnid == following]
    if twice or not wnids:
        raise UserError(
            f"{root / 'wnids.txt'}: {f'{twice[0]} stands there twice' if twice else 'no WordNet ids'}; "
            f"replace it with the published file"
        )
    names = {row[0]: row[1] for row in _rows(root / "words.txt", 2)}
    nameless = [wnid for wnid in wnids if wnid not in names]
    if nameless:
        raise UserError(
            f"{root / 'words.txt'} has no name for {nameless[0]}; replace it with the published file"
        )
    return {wnid: names[wnid] for wnid in wnids}


def _train(part: Path, classes: dict[str, str]) -> list[list[Path]]:
    members = []
    for wnid in classes:
        folder = class_folder("tiny_imagenet", part, wnid, classes, PUBLISHED) / "images"
        if not folder.is_dir():
            raise UserError(f"{folder} is missing, expected the images of {wnid} there; unpack the set again")
        members.append(images_in(folder))
        boxes = part / wnid / f"{wnid}_boxes.txt"
        if boxes.is_file():
            check_complete(folder, members[-1], [row[0] for row in _rows(boxes, 5)], boxes)
    return members


def _val(part: Path, classes: dict[str, str]) -> list[list[Path]]:
    annotations = part / "val_annotations.txt"
    wnid_of = {row[0]: row[1] for row in _rows(annotations, 6)}
    if not (part / "images").is_dir():
        raise UserError(
            f"{part / 'images'} is missing, expected the images that {annotations} lists; unpack the set again"
        )
    files = images_in(part / "images")
    check_complete(part / "images", files, wnid_of, annotations)
    members: dict[str, list[Path]] = {wnid: [] for wnid in classes}
    for file in files:
        wnid = wnid_of.get(file.name)
        if wnid not in members:
            found = "no class" if wnid is None else f"{wnid}, which wnids.txt lacks,"
            raise UserError(
                f"{annotations} gives {found} for {file.name}; replace it with the published file"
            )
        members[wnid].append(file)
    return list(members.values())


def _rows(path: Path, columns: int) -> list[list[str]]:
    """Return the tab-separated fields of each line."""
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the set again, published at {PUBLISHED}")
    rows = [line.split("\t") for line in read_bytes(path).decode("utf-8", "backslashreplace").splitlines()]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns or not all(row):
            raise UserError(
                f"{path}: line {number} has {len(row)} fields between tabs, expected {columns}; "
                f"replace it with the published file"
            )
    return rows
