"""RandAugment and cutout as scripts do them: one image at a time by Pillow. What ours is tested and timed against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from robustfast.data.fixmatch import OPERATIONS
from robustfast.reference.philox import philox4x32

__all__ = ["Steps", "by_pillow", "by_pillow_whole", "from_pillow", "steps", "to_pillow"]


def to_pillow(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels)


def from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def by_pillow(name: str, image: Image.Image, magnitude: int) -> Image.Image:
    """One operation with the parameters of the published code; a negative magnitude turns movements round."""
    v, sign = abs(magnitude), 1 if magnitude > 0 else -1
    factor = v * 0.9 / 10 + 0.05
    shift = sign * v * 0.3 / 10
    width, height = image.size

    def affine(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix)

    operations = {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "posterize": lambda: ImageOps.posterize(image, int(v * 4 / 10) + 4),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(v * 256 / 10)),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda: image.rotate(sign * int(v * 30 / 10)),
        "shear_x": lambda: affine(1, shift, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, shift, 1, 0),
        "translate_x": lambda: affine(1, 0, int(shift * width), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, int(shift * height)),
    }
    assert tuple(operations) == OPERATIONS
    return operations[name]()


class Steps(NamedTuple):
    """What one image goes through: operations with their magnitudes, and the upper left corner of the square."""

    operations: list[tuple[str, int]]
    left: int
    top: int


def steps(index: int, size: tuple[int, int], *, seed: int, n: int = 2, cutout: int = 16) -> Steps:
    """The draws of sample `index` of `size` = (width, height), word by word and in floating point."""

    def uniforms(turn: int) -> list[float]:
        counter = [torch.tensor([value]) for value in (index, turn, 0, 0)]
        return [int(word) / 2**32 for word in philox4x32(tuple(counter), (seed & 0xFFFFFFFF, seed >> 32))]

    operations = []
    for turn in range(n):
        which, strength, applied, turned = uniforms(turn)
        if applied < 0.5:
            magnitude = 1 + int(strength * 9)
            operations.append((OPERATIONS[int(which * 14)], -magnitude if turned >= 0.5 else magnitude))
    down, across, _, _ = uniforms(n)
    width, height = size
    left, top = int(max(0, across * width - cutout / 2)), int(max(0, down * height - cutout / 2))
    return Steps(operations, left, top)


def by_pillow_whole(image: Image.Image, drawn: Steps, cutout: int = 16) -> Image.Image:
    """All steps of one image."""
    result = image
    for name, magnitude in drawn.operations:
        result = by_pillow(name, result, magnitude)
    width, height = image.size
    right, bottom = min(width, drawn.left + cutout), min(height, drawn.top + cutout)
    if right > drawn.left and bottom > drawn.top:
        result = result.copy()
        grey = 127 if image.mode == "L" else (127, 127, 127)
        # Both corners belong to Pillow's rectangle.
        ImageDraw.Draw(result).rectangle((drawn.left, drawn.top, right - 1, bottom - 1), grey)
    return result
