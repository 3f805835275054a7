"""Read one JPEG or PNG file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from robustfast.errors import UserError

__all__ = ["GREY", "decode", "read_header"]

# Pillow's modes that convert to 8 bits a channel without losing depth or transparency.
GREY = ("1", "L")
COLOUR = ("RGB", "P", "CMYK", "YCbCr")


def read_header(path: Path) -> tuple[tuple[int, int], str]:
    """Return (width, height) and Pillow's mode, without decoding the image.

    Raises:
        UserError: an unreadable file, transparency, or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            size, mode, transparent = image.size, image.mode, "transparency" in image.info
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if transparent or mode not in GREY + COLOUR:
        raise UserError(
            f"{path} is {'transparent' if transparent else f'of mode {mode}'}, "
            f"expected grey or colour of 8 bits a channel without transparency; convert it"
        )
    return size, mode


def decode(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [channels, H, W]; where its size differs from `size` = (W, H), cut about the centre and resampled.

    Raises:
        UserError: damaged or truncated image data.
    """
    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    if pixels.size != size:
        pixels = ImageOps.fit(pixels, size, Image.Resampling.BILINEAR)
    return np.asarray(pixels).reshape(size[1], size[0], channels).transpose(2, 0, 1)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: {path.stat().st_size} bytes that do not decode as an image ({error!r}), "
        f"expected an intact JPEG or PNG file; replace or remove it"
    )
