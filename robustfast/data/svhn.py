"""SVHN, cropped house numbers: 73,257 + 26,032 images of 32x32 pixels, read from train_32x32.mat and test_32x32.mat.

Source: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import torch

from robustfast.data.dataset import Dataset, check_bytes, check_labels, check_split, read_bytes, require
from robustfast.data.locate import Layout, locate
from robustfast.errors import UserError

__all__ = ["load"]

PUBLISHED = "http://ufldl.stanford.edu/housenumbers"
# MAT-File Format (The MathWorks, 2023), version 5: 128 bytes of text, version and byte order, then one element for each
# variable: its type (14, or 15 where compressed), its byte count, its bytes.
MAT_HEADER = 128
MAT_ELEMENTS = (14, 15)


def load(split: str, data_dir: str | Path | None) -> Dataset:
    """Return SVHN as uint8 [N, 3, 32, 32]; the published label 10, which stands for the digit 0, becomes 0.

    Raises:
        UserError: missing, truncated or corrupt files; labels out of 1..10; scipy is missing.
    """
    check_split(split)
    file = f"{split}_32x32.mat"
    _, (path,) = locate("svhn", data_dir, [Layout(("svhn", "SVHN", "."), {file: (file,)})], PUBLISHED)
    pixels, labels = _read_mat(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or not pixels.shape[3]:
        raise UserError(
            f"{path}: X is {pixels.dtype} {list(pixels.shape)}, expected uint8 [32, 32, 3, N]; "
            f"replace it with the file published at {PUBLISHED}"
        )
    if labels.size != pixels.shape[3] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: y is {labels.dtype} with {labels.size} labels, expected {pixels.shape[3]} integers, one for each "
            f"image; replace it with the file published at {PUBLISHED}"
        )
    labels = labels.reshape(-1)
    check_labels(path, labels, 1, 10)
    return Dataset(
        name="svhn",
        images=torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))),
        labels=torch.from_numpy(labels.astype(np.int64) % 10),
        classes=tuple("0123456789"),
        augmentable=False,
    )


def _read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the variables X and y of a MAT 5 file."""
    scipy_io = require("scipy.io", "scipy", "svhn")
    raw = read_bytes(path)
    _check_elements(path, raw)
    try:
        content = scipy_io.loadmat(io.BytesIO(raw), variable_names=["X", "y"])
    except Exception as error:  # scipy's reader raises nearly anything on damaged bytes
        raise _corrupt(path, raw, repr(error)) from error
    for key in ("X", "y"):
        if key not in content:
            raise _corrupt(path, raw, f"no variable {key}")
    return content["X"], content["y"]


def _check_elements(path: Path, raw: bytes) -> None:
    """Follow the byte counts that the elements state about themselves to the end of the file."""
    if len(raw) < MAT_HEADER:
        check_bytes(path, len(raw), MAT_HEADER, "at least: the MAT header")
    order = {b"IM": "<", b"MI": ">"}.get(raw[MAT_HEADER - 2 : MAT_HEADER])
    if order is None:
        raise _corrupt(path, raw, "no byte order in its header")
    end = MAT_HEADER
    while end < len(raw):
        if end + 8 > len(raw):
            check_bytes(path, len(raw), end + 8, "at least: the tag of an element")
        kind, size = struct.unpack_from(f"{order}II", raw, end)
        if kind not in MAT_ELEMENTS:
            raise _corrupt(path, raw, f"type {kind} at byte {end}")
        end += 8 + size
    check_bytes(path, len(raw), end, "by the element that starts last")


def _corrupt(path: Path, raw: bytes, what: str) -> UserError:
    return UserError(
        f"{path}: {len(raw)} bytes that are no MAT 5 file with X and y ({what}); "
        f"replace it with the file published at {PUBLISHED}"
    )
