"""A few images of a data set in its published format, so that runs on them are runs like any other.

A run could say in its configuration that it trains on a part of the data; a folder that holds no more than that part
spares that case to every command that reads the run later.
"""

from __future__ import annotations

import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from robustfast.data import Dataset, load
from robustfast.errors import UserError
from robustfast.registry import lookup
from robustfast.training.held_out import spread

__all__ = ["FORMATS", "reduced_data"]


def reduced_data(name: str, source: Path, folder: Path, *, train: int, test: int) -> Path:
    """Write images spread evenly over both splits of a data set; nothing is done where that has been done before.

    Args:
        name: "mnist" or "cifar10".
        source: folder of the whole data set.
        folder: where the reduced one goes; it appears whole or not at all.
        train, test: images to keep of each split; all of them where there are fewer.

    Returns:
        `folder`.

    Raises:
        UserError: the data is missing or damaged, its format cannot be written here, or the folder cannot be written.
    """
    write = lookup("reducible data set", FORMATS, name)
    if folder.is_dir():
        return folder
    parts = {
        split: spread(load(name, split, source), images)
        for split, images in (("train", train), ("test", test))
    }
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / name).mkdir(parents=True)
        write(partial / name, parts)
        partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}; give an --out that can be written"
        ) from error
    return folder


def _write_idx(folder: Path, parts: dict[str, Dataset]) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = parts[split].images, parts[split].labels
        header = struct.pack(">IIII", 0x00000803, len(images), *images.shape[2:])
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = struct.pack(">II", 0x00000801, len(labels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.byte().numpy().tobytes())


def _write_cifar10(folder: Path, parts: dict[str, Dataset]) -> None:
    """The python version: five training batches, as the loader expects, whatever their size."""
    train, test = parts["train"], parts["test"]
    if len(train) < 5:
        raise ValueError(
            f"cifar10 comes in five training batches: expected at least 5 images, got {len(train)}"
        )
    batches = {
        f"data_batch_{number}": (images, labels)
        for number, images, labels in zip(
            range(1, 6), train.images.tensor_split(5), train.labels.tensor_split(5), strict=True
        )
    }
    batches["test_batch"] = (test.images, test.labels)
    for name, (images, labels) in batches.items():
        content = {b"data": images.flatten(1).numpy(), b"labels": labels.tolist()}
        # Protocol 3 is the first that holds bytes without naming a function to make them from text.
        (folder / name).write_bytes(pickle.dumps(content, protocol=3))
    names = {b"label_names": [name.encode() for name in train.classes]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=3))


FORMATS: dict[str, Callable[[Path, dict[str, Dataset]], None]] = {
    "mnist": _write_idx,
    "cifar10": _write_cifar10,
}
"""Writers by data set: (folder, split -> images)."""
