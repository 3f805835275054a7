"""The real handwritten digits inside scikit-learn: 1,797 images of 8x8 pixels, no download.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its
test part, as scikit-learn ships it).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from robustfast.data.dataset import Dataset, check_split, require

__all__ = ["load"]


def load(split: str, data_dir: str | Path | None = None) -> Dataset:
    """Return the digits: uint8 [1438, 1, 8, 8] for "train", [359, 1, 8, 8] for "test", grey levels 0..16 (scale 16).

    The test split is a fixed stratified fifth: of each class, in the order of the file, the images 2, 7, 12, ... No
    random number takes part, so the split is the same on every machine and version. `data_dir` is not needed: the
    images are inside scikit-learn.

    Raises:
        UserError: an unknown split, or scikit-learn is missing.
    """
    check_split(split)
    pixels, labels = _digits()
    position = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        members = labels == label
        position[members] = np.arange(members.sum())
    # Every fifth from the third on: exactly round(n / 5) images of each class.
    held_out = position % 5 == 2
    chosen = held_out if split == "test" else ~held_out
    images = pixels[chosen].astype(np.uint8).reshape(-1, 1, 8, 8)
    return Dataset(
        name="digits",
        images=torch.from_numpy(images),
        labels=torch.from_numpy(labels[chosen].astype(np.int64)),
        classes=tuple("0123456789"),
        scale=16.0,
        augmentable=False,
    )


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and labels [1797] in the order of the file."""
    # Found without an import of scikit-learn, which takes longer than all the rest of a short command's start.
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            return table[:, :-1], table[:, -1]
    # A release that keeps them elsewhere knows where.
    return require("sklearn.datasets", "scikit-learn", "digits").load_digits(return_X_y=True)
