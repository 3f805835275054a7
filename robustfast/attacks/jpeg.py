"""JPEG: images whose quantised JPEG coefficients are off by a little."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks.losses import Loss
from robustfast.attacks.transformed import State, TransformAttack

__all__ = ["JPEG", "decode", "encode"]

# ITU-T T.81, tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF 1.02.
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# What the code behind the published numbers moves a coefficient by, per unit of its variable.
GAIN = 0.5


class JPEG(TransformAttack):
    """The linf attack on JPEG coefficients of Kang et al. 2019 (arXiv:1908.08016), as its code (advex-uar) has it.

    The image goes through JPEG at the standard quantisation tables, colour as 4:2:0, but for the rounding: what is
    left is a linear map, whose quantised coefficients get a variable v added, |v| <= eps. From v in U(-eps, eps) each
    step is one of `step_size` along the sign of the gradient of the cross-entropy by v, clamped to eps. The last v
    counts. With eps 0 the image is what the codec makes of it: colour loses its detail below two pixels, a grey image
    loses nothing. An image that is not made of whole blocks is filled up with its last row and column, as codecs do,
    and cut back.

    Implementations differ: the paper bounds how far a coefficient moves by eps; its code, which the
    perceptual-adversarial code and CD-VAE's evaluation run, moves it by v / 2, in the first step's pass by
    eps * v / 2, which changes where the first gradient is taken. Here as the code does. CD-VAE's numbers for CIFAR
    have eps 0.125 and 100 steps, the default here; the perceptual-adversarial code's own default is 0.25 for CIFAR
    and 0.5 for ImageNet.

    Args:
        model: see `Attack`; images [B, 3, H, W], in blocks of 16, or [B, 1, H, W], in blocks of 8.
        eps: bound on each coefficient's variable, in steps of its quantisation.
        steps: gradient steps.
        step_size: in the units of eps; None: eps / sqrt(steps), as those codes.
        random_start, restarts, eot, early_stop: see `TransformAttack`.
        loss, targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly.

    Raises:
        ValueError: a setting out of range or an unknown name; in a call, images of another shape.
    """

    name = "jpeg"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float = 0.125,
        steps: int = 100,
        step_size: float | None = None,
        random_start: bool = True,
        restarts: int = 1,
        eot: int = 1,
        early_stop: bool = False,
        loss: str | Loss = "ce",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if step_size is None:
            # A wrong number of steps is refused below.
            step_size = eps / math.sqrt(steps) if isinstance(steps, int) and steps > 0 else 0.0
        super().__init__(
            model, eps=eps, steps=steps, step_size=step_size, optimizer="sign", random_start=random_start,
            restarts=restarts, eot=eot, early_stop=early_stop, loss=loss, targeted=targeted, bounds=bounds,
            batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip

    def _prepare(self, x: Tensor) -> State:
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"x has shape {tuple(x.shape)}, JPEG codes images [B, 3, H, W] or [B, 1, H, W]")
        lo, hi = self.bounds
        levels = (x - lo) * (255 / (hi - lo))
        height, width = _blocks(x)
        filled = F.pad(levels, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
        return {"coefficients": encode(filled)}

    def _size(self, x: Tensor) -> tuple[int, ...]:
        height, width = _blocks(x)
        return (height * width * 3 // 2 if x.shape[1] == 3 else height * width,)

    def _images(self, x: Tensor, offset: Tensor, prepared: State, *, first: bool = False) -> Tensor:
        lo, hi = self.bounds
        gain = GAIN * self.eps if first and self.eps else GAIN
        levels = decode(prepared["coefficients"] + gain * offset, (x.shape[1], *_blocks(x)))
        levels = levels[..., : x.shape[2], : x.shape[3]]
        return (levels * ((hi - lo) / 255) + lo).clamp(lo, hi)


def _blocks(x: Tensor) -> tuple[int, int]:
    """Height and width of images [B, C, H, W] in whole blocks, in pixels."""
    side = 16 if x.shape[1] == 3 else 8
    return -(-x.shape[2] // side) * side, -(-x.shape[3] // side) * side


def encode(levels: Tensor) -> Tensor:
    """Quantised coefficients, not rounded, of images [B, 3 or 1, H, W] with levels 0 to 255.

    Returns:
        [B, n], block by block of 8x8 in reading order, coefficients in the order of the tables: the H * W of the luma,
        then for colour the H * W / 4 each of blue and red difference.
    """
    if levels.shape[1] == 1:
        return _encode_plane(levels[:, 0])
    y, cb, cr = _mix(levels, TO_YCBCR)
    # The shift of the chroma planes by 128 is that which the transform takes off again.
    planes = [_encode_plane(y)]
    planes += [_encode_plane(_halved(plane) + 128, chroma=True) for plane in (cb, cr)]
    return torch.cat(planes, dim=1)


def decode(coefficients: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Images [B, *shape] in levels, not clamped, from what `encode` returns."""
    channels, height, width = shape
    if channels == 1:
        return _decode_plane(coefficients, height, width)[:, None]
    pixels = height * width
    y, cb, cr = coefficients.split([pixels, pixels // 4, pixels // 4], dim=1)
    planes = [_decode_plane(y, height, width)]
    for plane in (cb, cr):
        half = _decode_plane(plane, height // 2, width // 2, chroma=True) - 128
        planes.append(half.repeat_interleave(2, 1).repeat_interleave(2, 2))
    return torch.stack(_mix(torch.stack(planes, dim=1), TO_RGB), dim=1)


def _mix(planes: Tensor, matrix: tuple[tuple[float, ...], ...]) -> list[Tensor]:
    first, second, third = planes.unbind(1)
    return [a * first + b * second + c * third for a, b, c in matrix]


def _halved(plane: Tensor) -> Tensor:
    """[B, H, W] -> [B, H / 2, W / 2], the mean of each 2x2."""
    return plane.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).mean(dim=(2, 4))


@cache
def _tables(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The orthonormal 8x8 matrix of the DCT (coefficients = M block M^T), and the tables for luma and chroma.

    Kept for good: a CUDA graph can neither copy them from the host nor do without them later.
    """
    cosines = [
        [math.cos((2 * n + 1) * k * math.pi / 16) * math.sqrt((1 if k == 0 else 2) / 8) for n in range(8)]
        for k in range(8)
    ]
    values = torch.tensor([cosines, LUMA, CHROMA], dtype=dtype, device=device)
    return values[0], values[1], values[2]


def _encode_plane(plane: Tensor, *, chroma: bool = False) -> Tensor:
    cosines, *tables = _tables(plane.device, plane.dtype)
    blocks = (plane - 128).unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).transpose(2, 3)
    return (cosines @ blocks @ cosines.T / tables[chroma]).flatten(1)


def _decode_plane(coefficients: Tensor, height: int, width: int, *, chroma: bool = False) -> Tensor:
    cosines, *tables = _tables(coefficients.device, coefficients.dtype)
    blocks = coefficients.reshape(-1, height // 8, width // 8, 8, 8) * tables[chroma]
    return (cosines.T @ blocks @ cosines).transpose(2, 3).reshape(-1, height, width) + 128
