"""Random crops and flips of stored images, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from robustfast.reference.philox import MASK, philox4x32

__all__ = ["augment", "check_numbers"]


def augment(
    images: Tensor, index: Tensor, *, seed: int, pad: int, flip: bool, scale: float, dtype: torch.dtype
) -> Tensor:
    """Take rows of a padded store, each in a window and a direction that its number draws, divided by `scale`.

    Args:
        images: uint8 [N, C, H + 2 * pad, W + 2 * pad].
        index: int64 [B], each in 0..N - 1.
        seed: 0 <= seed < 2**63.
        pad: pixels of border on each side; 0 takes images whole.
        flip: mirror half of the images left to right, after the crop.
        scale: what a pixel is divided by, in float64 for float64 results and in float32 for others.
        dtype: float32, bfloat16, float64, or uint8, which is not divided.
    """
    zero = torch.zeros_like(index)
    top, left, mirror, _ = philox4x32((index, zero, zero, zero), (seed & MASK, seed >> 32))
    if pad:
        windows = images.unfold(2, images.shape[2] - 2 * pad, 1).unfold(3, images.shape[3] - 2 * pad, 1)
        pixels = windows[index, :, _place(top, pad), _place(left, pad)]
    else:
        pixels = images[index]
    if flip:
        pixels = torch.where((mirror >= 1 << 31)[:, None, None, None], pixels.flip(3), pixels)
    if dtype == torch.uint8:
        return pixels
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    # A tensor on the device, not a number: CUDA multiplies by the rounded reciprocal of a number, which moves 126 of
    # the 256 grey levels by one ulp against the quotient.
    return (pixels.to(exact) / torch.tensor(scale, dtype=exact, device=pixels.device)).to(dtype)


def _place(word: Tensor, pad: int) -> Tensor:
    """floor(u * places) in integers, where u = word / 2**32 is uniform in [0, 1)."""
    return word * (2 * pad + 1) >> 32


def check_numbers(index: Tensor, images: int) -> None:
    """Refuse numbers that no image of the store has; torch's own indexing counts negative ones from the end.

    Raises:
        IndexError: on the CPU. On CUDA nothing is raised here, and a device-side assertion fails.
    """
    inside = (index >= 0) & (index < images)
    if index.is_cpu:
        if not inside.all():
            number = int(index[inside.logical_not().nonzero()[0, 0]])
            raise IndexError(
                f"augment: index holds {number}, expected numbers of the {images} images, 0..{images - 1}"
            )
    else:
        torch._assert_async(inside.all(), f"augment: index holds a number that is not in 0..{images - 1}")
