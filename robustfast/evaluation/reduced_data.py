"""A few images of a data set in its published format, so that runs on them are runs like any other.

A run could say in its configuration that it trains on a part of the data; a folder that holds no more than that part
spares that case to every command that reads the run later.
"""

from __future__ import annotations

import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustfast.data import Dataset, ImageFiles, load
from robustfast.errors import UserError
from robustfast.registry import lookup
from robustfast.training.held_out import spread

__all__ = ["FORMATS", "REDUCIBLE", "TREES", "reduced_data"]


def reduced_data(name: str, source: Path, folder: Path, *, train: int, test: int) -> Path:
    """Write images spread evenly over both splits of a data set; nothing is done where that has been done before.

    Args:
        name: one of `REDUCIBLE`.
        source: folder of the whole data set.
        folder: where the reduced one goes; it appears whole or not at all.
        train, test: images to keep of each split; all of them where there are fewer. A set that lies on disk as files
            is not whole without one of its classes: of it two of each class are kept, where that is more.

    Returns:
        `folder`.

    Raises:
        UserError: the data is missing or damaged, its format cannot be written here, or the folder cannot be written.
    """
    write = lookup("reducible data set", REDUCIBLE, name)
    if folder.is_dir():
        return folder
    parts = {
        split: _few(load(name, split, source), images) for split, images in (("train", train), ("test", test))
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


def _few(split: Dataset | ImageFiles, images: int) -> Dataset | ImageFiles:
    # In the order of classes: at two of each class on average, no class is passed over.
    least = 2 * split.num_classes if isinstance(split, ImageFiles) else 0
    return spread(split, max(images, least))


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


def _write_cifar100(folder: Path, parts: dict[str, Dataset]) -> None:
    """The python version, with fine labels alone."""
    for split, part in parts.items():
        content = {b"data": part.images.flatten(1).numpy(), b"fine_labels": part.labels.tolist()}
        (folder / split).write_bytes(pickle.dumps(content, protocol=3))
    names = {b"fine_label_names": [name.encode() for name in parts["train"].classes]}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=3))


def _write_svhn(folder: Path, parts: dict[str, Dataset]) -> None:
    """MAT files, in which 10 stands for the digit 0."""
    from scipy.io import savemat

    for split, part in parts.items():
        labels = part.labels.numpy().astype(np.uint8)
        content = {
            "X": part.images.permute(2, 3, 1, 0).numpy(),
            "y": np.where(labels == 0, 10, labels)[:, None],
        }
        savemat(folder / f"{split}_32x32.mat", content)


def _copy_tiny_imagenet(folder: Path, parts: dict[str, ImageFiles]) -> None:
    train, test = parts["train"], parts["test"]
    # train/WNID/images/NAME.JPEG and val/images/NAME.JPEG
    root = train.files[0].parents[3]
    _copy(train.files, root, folder)
    _copy(test.files, root, folder)
    wnids = sorted({file.parents[1].name for file in train.files})
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in wnids))
    names = zip(wnids, train.classes, strict=True)
    (folder / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in names))
    rows = zip(test.files, test.labels.tolist(), strict=True)
    lines = [f"{file.name}\t{wnids[label]}\t0\t0\t0\t0\n" for file, label in rows]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def _copy_classes(folder: Path, parts: dict[str, ImageFiles]) -> None:
    """SPLIT/WNID/NAME.JPEG."""
    for part in parts.values():
        _copy(part.files, part.files[0].parents[2], folder)


def _copy(files: Sequence[Path], root: Path, folder: Path) -> None:
    for file in files:
        copy = folder / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


FORMATS: dict[str, Callable[[Path, dict[str, Dataset]], None]] = {
    "mnist": _write_idx,
    "cifar10": _write_cifar10,
    "cifar100": _write_cifar100,
    "svhn": _write_svhn,
}
"""Writers by data set: (folder, split -> images)."""

TREES: dict[str, Callable[[Path, dict[str, ImageFiles]], None]] = {
    "tiny_imagenet": _copy_tiny_imagenet,
    "imagenette": _copy_classes,
    "restricted_imagenet": _copy_classes,
}
"""The same for sets that lie on disk as one file per image."""

REDUCIBLE: dict[str, Callable[[Path, dict[str, Any]], None]] = {**FORMATS, **TREES}
"""Both."""
