"""The IDX format of MNIST and Fashion-MNIST, gzip-compressed or not.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits, "File formats": two zero bytes,
a type code (8: unsigned byte), the number of dimensions, each dimension as a big-endian uint32, then the data.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from robustfast.data.dataset import Dataset, check_bytes, check_labels, check_split, read_bytes
from robustfast.data.locate import Layout, locate
from robustfast.errors import UserError

__all__ = ["load_idx", "read_idx"]

UNSIGNED_BYTE = 8
GZIP_MAGIC = b"\x1f\x8b"
FILE_PREFIX = {"train": "train", "test": "t10k"}


def load_idx(
    name: str,
    split: str,
    data_dir: str | Path | None,
    *,
    folders: tuple[str, ...],
    classes: tuple[str, ...],
    published: str,
    augmentable: bool,
) -> Dataset:
    """Load a set published as MNIST is: uint8 [N, 1, 28, 28] and a label byte for each image.

    Args:
        name: the registered name.
        split: "train" or "test" (the files called t10k).
        data_dir: searched itself and in `folders`.
        folders: the folder names that users have for this set.
        classes: class names in label order.
        published: the publishing page, for messages.
        augmentable: see `Dataset`.

    Raises:
        UserError: missing, truncated or corrupt files; counts that differ; labels out of range.
    """
    check_split(split)
    prefix = FILE_PREFIX[split]
    files = {
        f"{prefix}-{kind}-idx{rank}-ubyte[.gz]": tuple(
            f"{prefix}-{kind}{separator}idx{rank}-ubyte{suffix}"
            for separator in "-."
            for suffix in ("", ".gz")
        )
        for kind, rank in (("images", 3), ("labels", 1))
    }
    _, (image_file, label_file) = locate(name, data_dir, [Layout((*folders, "raw", "."), files)], published)
    images, labels = read_idx(image_file, rank=3), read_idx(label_file, rank=1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise UserError(
            f"{image_file}: found {len(images)} images of {images.shape[1]}x{images.shape[2]} pixels, "
            f"expected at least one of 28x28; replace it with the file published at {published}"
        )
    if len(images) != len(labels):
        raise UserError(
            f"{label_file}: found {len(labels)} labels, expected {len(images)}, one for each image of {image_file}; "
            f"take both files from the same source"
        )
    check_labels(label_file, labels, 0, len(classes) - 1)
    return Dataset(
        name=name,
        images=torch.from_numpy(images[:, None]),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=classes,
        augmentable=augmentable,
    )


def read_idx(path: Path, rank: int) -> np.ndarray:
    """Return the uint8 array of `rank` dimensions in an IDX file; gzip is recognised by content, not by name.

    Raises:
        UserError: not an IDX file of unsigned bytes of that rank, or one whose byte count differs from its header's.
    """
    raw = read_bytes(path)
    content, whole, origin = raw, True, ""
    if raw[:2] == GZIP_MAGIC:
        content, whole = _gunzip(path, raw)
        origin = f", unpacked from {len(raw)} bytes of gzip"
    header = 4 + 4 * rank
    if len(content) < header:
        check_bytes(path, len(content), header, f"at least: the IDX header{origin}")
    (magic,) = struct.unpack(">I", content[:4])
    expected_magic = UNSIGNED_BYTE << 8 | rank
    if magic != expected_magic:
        raise UserError(
            f"{path} is not the IDX file expected here: it starts with {magic:#010x}, expected {expected_magic:#010x} "
            f"(unsigned bytes, {rank} dimensions); replace it with the published file"
        )
    shape = struct.unpack(f">{rank}I", content[4:header])
    expected = header + math.prod(shape)
    check_bytes(
        path, len(content), expected, f"a header of {header} and {'x'.join(map(str, shape))} values{origin}"
    )
    if not whole:
        raise UserError(
            f"{path} is truncated: its {len(raw)} bytes of gzip unpack to the {expected} bytes expected, "
            f"but the checksum that ends the stream is cut; replace it with the published file"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _gunzip(path: Path, raw: bytes) -> tuple[bytes, bool]:
    """Unpack one gzip stream as far as it goes, and tell whether its end was reached and its checksum verified."""
    stream = zlib.decompressobj(wbits=31)  # 31: gzip framing
    try:
        content = stream.decompress(raw)
    except zlib.error as error:
        raise UserError(
            f"{path}: {len(raw)} bytes hold a corrupt gzip stream ({error!r}), expected an intact one; "
            f"replace it with the published file"
        ) from error
    check_bytes(path, len(raw), len(raw) - len(stream.unused_data), "where its gzip stream ends")
    return content, stream.eof
