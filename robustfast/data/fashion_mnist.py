"""Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28x28 grey, read from the four published IDX files."""

from __future__ import annotations

from pathlib import Path

from robustfast.data.dataset import Dataset
from robustfast.data.idx import load_idx

__all__ = ["load"]

CLASSES = (
    "t-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load(split: str, data_dir: str | Path | None) -> Dataset:
    """Return Fashion-MNIST as uint8 [N, 1, 28, 28]. Files, folders and errors as `load_idx` says."""
    return load_idx(
        "fashion_mnist",
        split,
        data_dir,
        folders=("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
        classes=CLASSES,
        published="https://github.com/zalandoresearch/fashion-mnist",
        augmentable=True,
    )
