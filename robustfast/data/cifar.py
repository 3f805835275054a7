"""CIFAR-10 and CIFAR-100, in the python (pickled) and the binary version, both as published.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the page in `PUBLISHED`, which
describes both formats. CIFAR-100 is read with its 100 fine labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from robustfast.data.dataset import Dataset, check_bytes, check_labels, check_split, read_bytes
from robustfast.data.locate import Layout, locate
from robustfast.data.restricted_unpickler import load_batch
from robustfast.errors import UserError

__all__ = ["load_cifar10", "load_cifar100"]

PUBLISHED = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 3 * 32 * 32  # one image: the red plane row by row, then green, then blue


@dataclass(frozen=True)
class _Cifar:
    """Where one of the two sets keeps what: file names (per split), dictionary keys, the bytes of a binary record."""

    name: str
    num_classes: int
    python_folder: str
    python_files: dict[str, list[str]]
    python_meta: str
    labels_key: bytes
    names_key: bytes
    binary_folder: str
    binary_files: dict[str, list[str]]
    binary_names: str
    binary_images: dict[str, int]  # in each file of the split
    label_bytes: int  # before the pixels of a record; the last one is the label


CIFAR10 = _Cifar(
    name="cifar10",
    num_classes=10,
    python_folder="cifar-10-batches-py",
    python_files={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    python_meta="batches.meta",
    labels_key=b"labels",
    names_key=b"label_names",
    binary_folder="cifar-10-batches-bin",
    binary_files={"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    binary_names="batches.meta.txt",
    binary_images={"train": 10_000, "test": 10_000},
    label_bytes=1,
)
CIFAR100 = _Cifar(
    name="cifar100",
    num_classes=100,
    python_folder="cifar-100-python",
    python_files={"train": ["train"], "test": ["test"]},
    python_meta="meta",
    labels_key=b"fine_labels",
    names_key=b"fine_label_names",
    binary_folder="cifar-100-binary",
    binary_files={"train": ["train.bin"], "test": ["test.bin"]},
    binary_names="fine_label_names.txt",
    binary_images={"train": 50_000, "test": 10_000},
    label_bytes=2,
)


def load_cifar10(split: str, data_dir: str | Path | None) -> Dataset:
    """Return CIFAR-10 as uint8 [N, 3, 32, 32], from cifar-10-batches-py or cifar-10-batches-bin in `data_dir`.

    Raises:
        UserError: missing, truncated or corrupt files, a pickle that names code, labels out of range.
    """
    return _load(CIFAR10, split, data_dir)


def load_cifar100(split: str, data_dir: str | Path | None) -> Dataset:
    """Return CIFAR-100 with its fine labels, from cifar-100-python or cifar-100-binary; else as `load_cifar10`."""
    return _load(CIFAR100, split, data_dir)


def _load(cifar: _Cifar, split: str, data_dir: str | Path | None) -> Dataset:
    check_split(split)
    layouts = [
        Layout(
            (folder, f"{cifar.name}/{folder}", cifar.name, "."),
            {file: (file,) for file in (*files[split], names)},
        )
        for folder, files, names in (
            (cifar.python_folder, cifar.python_files, cifar.python_meta),
            (cifar.binary_folder, cifar.binary_files, cifar.binary_names),
        )
    ]
    layout, (*files, names) = locate(cifar.name, data_dir, layouts, PUBLISHED)
    if layout is layouts[0]:
        classes, rows = _python_names(cifar, names)
        parts = [_read_python(cifar, file, rows) for file in files]
    else:
        classes = _binary_names(names)
        parts = [_read_binary(cifar, file, cifar.binary_images[split]) for file in files]
    if len(classes) != cifar.num_classes:
        raise UserError(
            f"{names}: found {len(classes)} class names, expected {cifar.num_classes}; "
            f"replace it with the published file"
        )
    for file, (_, labels) in zip(files, parts, strict=True):
        check_labels(file, labels, 0, cifar.num_classes - 1)
    return Dataset(
        name=cifar.name,
        images=torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(np.concatenate([labels for _, labels in parts]).astype(np.int64)),
        classes=classes,
    )


def _python_names(cifar: _Cifar, path: Path) -> tuple[tuple[str, ...], int | None]:
    """Return the class names and the images a batch must hold, where the file states that (CIFAR-10's does)."""
    meta = load_batch(path)
    names = meta.get(cifar.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UserError(
            f"{path}: no list of byte strings under {cifar.names_key!r}; replace it with the published file"
        )
    rows = meta.get(b"num_cases_per_batch")
    if rows is not None and type(rows) is not int:
        raise UserError(f"{path}: num_cases_per_batch is no integer; replace it with the published file")
    return tuple(name.decode("ascii", "backslashreplace") for name in names), rows


def _binary_names(path: Path) -> tuple[str, ...]:
    return tuple(read_bytes(path).decode("ascii", "backslashreplace").split())


def _read_python(cifar: _Cifar, path: Path, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [n, 3072] and labels int64 [n] of one pickled batch."""
    batch = load_batch(path)
    for key in (b"data", cifar.labels_key):
        if key not in batch:
            raise UserError(
                f"{path}: found the keys {', '.join(sorted(map(repr, batch)))}, expected {key!r} among them; "
                f"replace it with the {cifar.name} file as published"
            )
    pixels, labels = batch[b"data"], batch[cifar.labels_key]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        found = list(pixels.shape) if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise UserError(
            f"{path}: b'data' is {found}, expected uint8 [N, {PIXELS}]; replace it with the published file"
        )
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError(
            f"{path}: {cifar.labels_key!r} is not a list of integers; replace it with the published file"
        )
    if len(labels) != len(pixels) or rows not in (None, len(pixels)):
        raise UserError(
            f"{path}: found {len(pixels)} images of {PIXELS} bytes and {len(labels)} labels, "
            f"expected {rows or len(pixels)} of each; replace it with the published file"
        )
    return pixels, np.array(labels)


def _read_binary(cifar: _Cifar, path: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [n, 3072] and labels uint8 [n] of one file of records (label bytes, pixels).

    The records carry no count, so only the published size can tell a file that was cut between two of them.
    """
    raw = read_bytes(path)
    record = cifar.label_bytes + PIXELS
    check_bytes(path, len(raw), images * record, f"{images} records of {record} bytes")
    records = np.frombuffer(raw, np.uint8).reshape(images, record)
    return records[:, cifar.label_bytes :], records[:, cifar.label_bytes - 1]
