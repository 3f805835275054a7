"""MNIST: 60,000 + 10,000 handwritten digits of 28x28 pixels, read from the four published IDX files."""

from __future__ import annotations

from pathlib import Path

from robustfast.data.dataset import Dataset
from robustfast.data.idx import load_idx

__all__ = ["load"]


def load(split: str, data_dir: str | Path | None) -> Dataset:
    """Return MNIST as uint8 [N, 1, 28, 28]. Files, folders and errors as `load_idx` says."""
    return load_idx(
        "mnist",
        split,
        data_dir,
        folders=("mnist", "mnist/raw", "MNIST/raw", "MNIST"),
        classes=tuple("0123456789"),
        published="http://yann.lecun.com/exdb/mnist",
        augmentable=False,
    )
