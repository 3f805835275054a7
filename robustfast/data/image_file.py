"""Read one JPEG or PNG file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from robustfast.errors import UserError

__all__ = ["GREY", "decode", "read_header"]

# Pillow's modes that convert to 8 bits a channel without losing depth or transparency.
GREY = ("1", "L")
COLOUR = ("RGB", "P", "CMYK", "YCbCr")
# Bytes in which most files keep all that precedes the pixels. Read at once they take three system calls; Pillow's own
# seeks and reads take dozens, at each of which threads hand over the interpreter's lock: 8 threads read 19,000 headers
# a second this way and 11,000 that way, on two processors with the files in memory.
HEAD = 16384


def read_header(path: Path) -> tuple[tuple[int, int], str]:
    """Return (width, height) and Pillow's mode, without decoding the image.

    Raises:
        UserError: an unreadable file, transparency, or more than 8 bits a channel.
    """
    try:
        try:
            with open(path, "rb", buffering=0) as file:
                head = file.read(HEAD)
            size, mode, transparent = _header(io.BytesIO(head))
        except (
            OSError,
            SyntaxError,
            ValueError,
        ):  # what precedes the pixels is longer: a profile, a thumbnail
            size, mode, transparent = _header(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    _check_mode(path, mode, transparent)
    return size, mode


def decode(
    path: Path,
    channels: int,
    size: tuple[int, int],
    window: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Return uint8 [channels, H, W], where `size` = (W, H), resampled bilinearly where it needs to be.

    The tag by which cameras say how they were held is not followed: the sets read here were collected and labelled
    without it, and other decoders can be told the same.

    Args:
        path: the file.
        channels: 1 for grey, 3 for colour.
        size: (W, H) of the result.
        window: (left, top, right, bottom) of the part to take, in pixels of the file; it is cut out and resampled to
            `size` whatever its shape, nothing beyond it being read. None: the largest part
            with the shape of `size`, about the centre.

    Raises:
        UserError: damaged or truncated image data, transparency, or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            _check_mode(path, image.mode, "transparency" in image.info)
            pixels = image.convert("L" if channels == 1 else "RGB")
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if window is not None:
        pixels = pixels.crop(window).resize(size, Image.Resampling.BILINEAR)
    elif pixels.size != size:
        pixels = ImageOps.fit(pixels, size, Image.Resampling.BILINEAR)
    return np.asarray(pixels).reshape(size[1], size[0], channels).transpose(2, 0, 1)


def _header(file: Path | io.BytesIO) -> tuple[tuple[int, int], str, bool]:
    with Image.open(file) as image:
        return image.size, image.mode, "transparency" in image.info


def _check_mode(path: Path, mode: str, transparent: bool) -> None:
    if transparent or mode not in GREY + COLOUR:
        raise UserError(
            f"{path} is {'transparent' if transparent else f'of mode {mode}'}, "
            f"expected grey or colour of 8 bits a channel without transparency; convert it"
        )


def _unreadable(path: Path, error: Exception) -> UserError:
    size = f"{path.stat().st_size} bytes that do not decode" if path.is_file() else "no file that decodes"
    return UserError(
        f"{path}: {size} as an image ({error!r}), expected an intact JPEG or PNG file; replace or remove it"
    )
