"""RandAugment and cutout as FixMatch has them: the augmentation on which CD-VAE is pre-trained.

Sources: E. D. Cubuk, B. Zoph, J. Shlens, Q. V. Le, RandAugment, NeurIPS 2020; K. Sohn et al., FixMatch, NeurIPS 2020,
table 12 (the pool); T. DeVries, G. W. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
2017. The ranges and the order of the steps are those of the CD-VAE code, which takes them from the PyTorch version of
FixMatch: two operations of the pool, each with a magnitude of 1 to 9 and applied with probability 1/2, then the square.

Why this is written here: NVIDIA DALI's auto_augment and torchvision's transforms draw from generators of their own,
which depend on the batch, the worker and what was drawn before. These draws are counter-based as all others of this
package, so a sample's pixels are a function of (seed, index), with any loader, batch split, device and number of
processes. What each operation does to pixels is Pillow's definition, on which the published code runs, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.reference.philox import MASK, philox4x32

__all__ = ["OPERATIONS", "Draws", "draw", "operate", "rand_augment"]

MAGNITUDES = 9
GREY = 127


def rand_augment(images: Tensor, *, seed: int, index: Tensor, n: int = 2, cutout: int = 16) -> Tensor:
    """Distort each image by `n` operations drawn for it, then make a square of it grey.

    Groups of samples that drew the same operation go through it together; the sizes of the groups are read on the host,
    so a CUDA device is synchronised once.

    Args:
        images: uint8 [B, C, H, W], C = 1 or 3, grey levels 0..255, contiguous or channels-last.
        seed: 0 <= seed < 2**63: the run's seed, derived for the purpose and the epoch.
        index: int64 [B], the sample's number in the data set, in 0..2**32-1, on the device of the images.
        n: operations per image.
        cutout: side of the square in pixels; 0: none. (The published code draws the corners of its rectangle inclusive,
            17 pixels; here the square has the 16 that are meant.)

    Returns:
        uint8 [B, C, H, W], a new tensor in the memory format of `images`.

    Raises:
        TypeError: another dtype of the images or of the index.
        ValueError: another number of channels or of dimensions, an index of another length, a negative seed, n or
            cutout.
    """
    _check(images, seed, index, n, cutout)
    height, width = images.shape[2:]
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    draws = draw(seed=seed, index=index, n=n)
    pixels = images.contiguous()
    # The operations that move pixels are one group: they differ by a matrix alone.
    group = draws.operation.clamp(max=len(CHANGES) + 1)
    counts = torch.zeros(n, len(CHANGES) + 2, dtype=torch.int64, device=index.device)
    sizes = counts.scatter_add_(1, group, torch.ones_like(group)).tolist()
    for turn in range(n):
        # Sorted by group, so that each goes through its operation as one piece of memory.
        order = group[turn].argsort(stable=True)
        whole = (
            pixels.index_select(0, order),
            draws.operation[turn][order],
            draws.magnitude[turn][order],
        )
        pieces = zip(*(each.split(sizes[turn]) for each in whole), strict=True)
        done = [_operate(number, *piece) for number, piece in enumerate(pieces)]
        pixels = torch.cat(done).index_select(0, order.argsort())
    if cutout:
        top, left = (
            _corner(word, side, cutout) for word, side in zip(draws.square, (height, width), strict=True)
        )
        inside = _span(top, cutout, height)[:, None, :, None] & _span(left, cutout, width)[:, None, None, :]
        # Products, for masked_fill_ and where take 13 times as long on bytes.
        pixels = (pixels * ~inside).add_(inside * torch.tensor(GREY, dtype=torch.uint8))
    if channels_last:
        return pixels.contiguous(memory_format=torch.channels_last)
    return pixels.clone() if pixels is images else pixels


class Draws(NamedTuple):
    """What is drawn for a batch.

    Attributes:
        operation: int64 [n, B], the position in `OPERATIONS` of what is applied; 0, identity, where nothing is.
        magnitude: int64 [n, B], 1..9, or -9..-1 for the half whose direction is turned round.
        square: two words of 32 bits, int64 [B] each, for the square's place down and across.
    """

    operation: Tensor
    magnitude: Tensor
    square: tuple[Tensor, Tensor]


def draw(*, seed: int, index: Tensor, n: int = 2) -> Draws:
    """Return the draws of the samples `index` (int64 [B]): a pure function of seed and number.

    Philox 4x32-10, key seed, counter (index, t, 0, 0). For t in 0..n-1 the four words w give the operation
    ``w[0] * 14 >> 32``, the magnitude ``1 + (w[1] * 9 >> 32)``, whether it is applied, ``w[2] < 2**31``, and whether it
    is turned round, ``w[3] >= 2**31``; t = n places the square.
    """
    turn = torch.arange(n + 1, device=index.device)[:, None]
    zero = torch.zeros_like(turn)
    words = philox4x32((index[None], turn, zero, zero), (seed & MASK, seed >> 32))
    which, strength, applied, turned = (word[:n] for word in words)
    operation = (which * len(OPERATIONS) >> 32) * (applied < 1 << 31)
    magnitude = (1 + (strength * MAGNITUDES >> 32)) * torch.where(turned >= 1 << 31, -1, 1)
    return Draws(operation, magnitude, (words[0][n], words[1][n]))


def _check(images: Tensor, seed: int, index: Tensor, n: int, cutout: int) -> None:
    if images.dtype != torch.uint8 or index.dtype != torch.int64:
        raise TypeError(
            f"images are {images.dtype} and index {index.dtype}, expected torch.uint8 and torch.int64"
        )
    if images.dim() != 4 or images.shape[1] not in (1, 3) or index.shape != images.shape[:1]:
        raise ValueError(
            f"images are {list(images.shape)} and index {list(index.shape)}, expected [B, 1 or 3, H, W] and [B]"
        )
    if not 0 <= seed < 2**63 or n < 0 or cutout < 0:
        raise ValueError(
            f"seed {seed}, n {n}, cutout {cutout}: expected each at least 0, and a seed below 2**63"
        )


def _corner(word: Tensor, side: int, cutout: int) -> Tensor:
    """First row or column of the square, int64 [B]: its centre is uniform, and what is before the edge moves to it."""
    # floor(u * side - cutout / 2) with u = word / 2**32, without rounding.
    return ((word * (2 * side) - (cutout << 32)) >> 33).clamp(min=0)


def _span(start: Tensor, length: int, side: int) -> Tensor:
    """bool [B, side]: start <= position < start + length."""
    position = torch.arange(side, device=start.device) - start[:, None]
    return (position >= 0) & (position < length)


def _by_magnitude(values: Callable[[int], float], magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, 1]: a parameter, computed on the host in float64 as Python does, for each sample's magnitude."""
    table = torch.tensor([values(each) for each in range(1, MAGNITUDES + 1)], dtype=dtype)
    return table.to(magnitude.device)[magnitude.abs() - 1][:, None, None, None]


def _autocontrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch the grey levels of each channel to 0..255."""
    planes = images.flatten(2).flatten(0, 1)
    low, high = (bound[:, None].double() for bound in (planes.amin(dim=1), planes.amax(dim=1)))
    every = torch.arange(256, dtype=torch.float64, device=images.device)
    scale = torch.full_like(low, 255) / (high - low)  # a number divided by a tensor would be rounded twice
    levels = (every * scale + -low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, levels, every))


def _equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Make the histogram of each channel flat."""
    planes = images.flatten(2).flatten(0, 1).long()
    histogram = torch.zeros(len(planes), 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, planes, torch.ones_like(planes))
    last = histogram.gather(1, planes.amax(dim=1, keepdim=True))
    step = (planes.shape[1] - last) // 255
    before = histogram.cumsum(dim=1) - histogram
    levels = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, levels, torch.arange(256, device=images.device)))


def _look_up(images: Tensor, levels: Tensor) -> Tensor:
    """Each pixel's new level, out of those of its channel: [B * C, 256], cut off to integers."""
    planes = images.flatten(2).flatten(0, 1).long()
    return levels.to(torch.uint8).gather(1, planes).view_as(images)


def _posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep 4 to 7 bits of each grey level."""
    mask = _by_magnitude(lambda v: 256 - 2 ** (8 - (int(v * 4 / 10) + 4)), magnitude, torch.uint8)
    return images & mask


def _solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the grey levels from a threshold on."""
    threshold = _by_magnitude(lambda v: 256 - int(v * 256 / 10), magnitude, torch.uint8)
    # All bits of a byte turned over are 255 minus it; where() takes ten times as long on bytes.
    return images ^ (images >= threshold) * torch.tensor(255, dtype=torch.uint8)


def _brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Darken."""
    return _blend(torch.zeros(1, 1, 1, 1, device=images.device), images, magnitude)


def _color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Take colour away."""
    return _blend(_luminance(images).float(), images, magnitude)


def _contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Draw towards the mean luminance, which is rounded."""
    luminance = _luminance(images)
    pixels = luminance[0].numel()
    mean = (2 * luminance.sum(dim=(1, 2, 3), keepdim=True) + pixels) // (2 * pixels)
    return _blend(mean.float(), images, magnitude)


def _sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blur: draw towards the weighted mean of 3x3 pixels, 5 at the centre and 1 beside it; the border stays."""
    height, width = images.shape[2:]
    if height < 3 or width < 3:
        return images
    wide = images.to(torch.int16)
    rows = (wide[:, :, :-2] + wide[:, :, 1:-1]).add_(wide[:, :, 2:])
    total = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(wide[:, :, 1:-1, 1:-1], alpha=4)
    smooth = images.float()
    # Rounded: an odd number over 26 is no integer, and not so near one that float32 could take it for one.
    smooth[:, :, 1:-1, 1:-1] = total.mul_(2).add_(13).div(26).floor_()
    return _blend(smooth, images, magnitude)


def _luminance(images: Tensor) -> Tensor:
    """int32 [B, 1, H, W]: ITU-R 601-2 luma in 16 fractional bits, rounded."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16


def _blend(start: Tensor, images: Tensor, magnitude: Tensor) -> Tensor:
    """`start` for a factor of 0, `images` for 1, between them in float32 and cut off; the factor is .14 to .86.

    Args:
        start: float32 that broadcasts to the images, integers in 0..255.
        images: uint8 [B, C, H, W].
        magnitude: int64 [B].
    """
    factor = _by_magnitude(lambda v: v * 0.9 / 10 + 0.05, magnitude, torch.float32)
    return images.float().sub_(start).mul_(factor).add_(start).to(torch.uint8)


Matrix = tuple[float, float, float, float, float, float]


def _rotate(magnitude: int, height: int, width: int) -> Matrix:
    """About the centre, by 3 to 27 degrees."""
    angle = -math.radians(int(abs(magnitude) * 30 / 10) * (1 if magnitude > 0 else -1) % 360)
    cos, sin, back = round(math.cos(angle), 15), round(math.sin(angle), 15), round(-math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + 0.0 + x, back, cos, back * -x + cos * -y + 0.0 + y


def _shear_x(magnitude: int, height: int, width: int) -> Matrix:
    return 1, magnitude * 0.3 / 10, 0, 0, 1, 0


def _shear_y(magnitude: int, height: int, width: int) -> Matrix:
    return 1, 0, 0, magnitude * 0.3 / 10, 1, 0


def _translate_x(magnitude: int, height: int, width: int) -> Matrix:
    """By 3 to 27 % of the width, in whole pixels."""
    return 1, 0, int(magnitude * 0.3 / 10 * width), 0, 1, 0


def _translate_y(magnitude: int, height: int, width: int) -> Matrix:
    return 1, 0, 0, 0, 1, int(magnitude * 0.3 / 10 * height)


CHANGES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "autocontrast": _autocontrast,
        "equalize": _equalize,
        "posterize": _posterize,
        "solarize": _solarize,
        "brightness": _brightness,
        "color": _color,
        "contrast": _contrast,
        "sharpness": _sharpness,
    }
)
MOVES: Mapping[str, Callable[[int, int, int], Matrix]] = MappingProxyType(
    {
        "rotate": _rotate,
        "shear_x": _shear_x,
        "shear_y": _shear_y,
        "translate_x": _translate_x,
        "translate_y": _translate_y,
    }
)
OPERATIONS = ("identity", *CHANGES, *MOVES)
"""FixMatch's pool. Identity comes first, for it also stands for an operation that is drawn and not applied."""


@lru_cache(maxsize=16)
def _matrices(height: int, width: int) -> Tensor:
    """int32 [5, 19, 6]: of each move the matrix of each magnitude from -9 to 9, in 16 fractional bits, starting from
    the centre of pixel (0, 0)."""
    rows = []
    for matrix in MOVES.values():
        for magnitude in range(-MAGNITUDES, MAGNITUDES + 1):
            a, b, c, d, e, f = matrix(magnitude, height, width)
            values = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
            rows.append([math.floor(value * 65536.0 + 0.5) for value in values])
    return torch.tensor(rows, dtype=torch.int32).view(len(MOVES), -1, 6)


def _move(images: Tensor, move: Tensor, magnitude: Tensor) -> Tensor:
    """The nearest pixel of where the matrix leads from each pixel's centre; black beyond the image.

    Args:
        images: uint8 [B, C, H, W].
        move: int64 [B], positions in `MOVES`.
        magnitude: int64 [B], -9..9.
    """
    height, width = images.shape[2:]
    table = _matrices(height, width).to(images.device)
    a, b, c, d, e, f = table[move, magnitude + MAGNITUDES][:, :, None, None].unbind(1)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    from_x, from_y = a * x + (b * y + c) >> 16, d * x + (e * y + f) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    source = ((from_y * width + from_x) * inside).flatten(1)[:, None].long()
    found = images.flatten(2).gather(2, source.expand(-1, images.shape[1], -1)).view_as(images)
    return found * inside[:, None]


def _operate(group: int, images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply the operations of one group: identity, each of `CHANGES`, and all of `MOVES`, in this order."""
    if group == 0 or not len(images):
        return images
    if group <= len(CHANGES):
        return CHANGES[OPERATIONS[group]](images, magnitude)
    return _move(images, operation - group, magnitude)


def operate(name: str, images: Tensor, magnitude: Tensor) -> Tensor:
    """Return the images after one operation of `OPERATIONS`.

    Args:
        name: the operation.
        images: uint8 [B, C, H, W], C = 1 or 3.
        magnitude: int64 [B] in 1..9, or -9..-1, which those that move pixels take as the other direction.
    """
    operation = torch.full_like(magnitude, OPERATIONS.index(name))
    return _operate(min(OPERATIONS.index(name), len(CHANGES) + 1), images, operation, magnitude)
