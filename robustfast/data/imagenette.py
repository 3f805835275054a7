"""Imagenette: ten classes of ImageNet that are easily told apart, 9,469 training and 3,925 validation images.

Source: fast.ai, at the page in `PUBLISHED`. Its second version is meant, of December 2019, whose split differs from the
first one's: the folders are called imagenette2, or imagenette2-320 and imagenette2-160 where the shorter side has that
many pixels.
"""

from __future__ import annotations

from pathlib import Path

from robustfast.data.dataset import read_bytes
from robustfast.data.image_files import ImageFiles
from robustfast.data.image_tree import FOLDERS, check_complete, find_root, load_classes

__all__ = ["CLASSES", "load"]

PUBLISHED = "https://github.com/fastai/imagenette"
PLACES = (
    *("imagenette2-320", "imagenette2-160", "imagenette2"),
    *("imagenette/imagenette2-320", "imagenette/imagenette2-160", "imagenette/imagenette2"),
    *("imagenette", "."),
)
IMAGE_SIZE = 224
CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""The name of each class by WordNet id, in the order of the labels."""


def load(split: str, data_dir: str | Path | None, *, image_size: int | None = None) -> ImageFiles:
    """Return Imagenette; its validation images are the test split.

    The samples follow in the order of class, then file name. Where noisy_imagenette.csv lies beside the folders, which
    lists all images of both splits, every one of the split must be there.

    Args:
        split: "train" or "test".
        data_dir: the folder that holds train and val, or one that holds it under its published name.
        image_size: the side in pixels to which images are brought; None: 224.

    Raises:
        UserError: missing classes or images, several of the published folders side by side.
    """
    wanted = "train/WNID/*.JPEG and val/WNID/*.JPEG of imagenette2, imagenette2-320 or imagenette2-160"
    root = find_root("imagenette", split, data_dir, PLACES, wanted, PUBLISHED)
    part = root / FOLDERS[split]
    size = IMAGE_SIZE if image_size is None else image_size
    images = load_classes("imagenette", part, CLASSES, size, PUBLISHED)
    table = root / "noisy_imagenette.csv"
    if table.is_file():
        paths = [
            line.split(",", 1)[0] for line in read_bytes(table).decode("utf-8", "backslashreplace").split()
        ]
        listed = [Path(path).name for path in paths if path.startswith(f"{part.name}/")]
        check_complete(part, images.files, listed, table)
    return images
