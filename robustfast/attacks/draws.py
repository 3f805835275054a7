"""Random numbers of attacks beside their start: keyed by seed, sample and draw, whatever the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustfast.reference.philox import philox4x32

__all__ = ["normal", "signs", "uniform"]

# `random_start` draws under purposes 0, 1 and 2 of the same counter; here purpose is 3 + 4 * step.
_PURPOSE, _STRIDE = 3, 4


def uniform(
    index: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """U[0, 1) in 24 bits, the same numbers in every dtype.

    Philox 4x32-10 with the key `seed` and the counter (element // 4, 3 + 4 * step, low and high word of the index);
    the element takes word element % 4.

    Args:
        index: int64 [B], each sample's number in the data set.
        shape: of one sample's draws.
        seed: 0 <= seed < 2**63, one for each kind of draw: from `robustfast.seeds.derive`; an int64 tensor [] where a
            CUDA graph has to read it.
        step: below 2**30, numbers the draws of one kind; an int64 tensor [] where a CUDA graph has to read it.
        dtype: of the result.

    Returns:
        [B, *shape] on the device of `index`.
    """
    return (_words(index, math.prod(shape), seed, step) >> 8).to(dtype).mul_(2**-24).reshape(-1, *shape)


def signs(
    index: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """-1 or 1 with equal probability; arguments as of `uniform`."""
    return (_words(index, math.prod(shape), seed, step) >> 31).to(dtype).mul_(2).sub_(1).reshape(-1, *shape)


def normal(
    index: Tensor,
    shape: tuple[int, ...],
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal draws by Box and Muller, in float64 and rounded once; arguments as of `uniform`."""
    count = math.prod(shape)
    pairs = (_words(index, 2 * count, seed, step).double() + 0.5) * 2**-32
    radius = (-2 * pairs[:, :count].log()).sqrt()
    return (radius * (2 * math.pi * pairs[:, count:]).cos()).to(dtype).reshape(-1, *shape)


def _words(index: Tensor, count: int, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """32 random bits each, as int64 [B, count]."""
    element = torch.arange(-(-count // 4), device=index.device)
    purpose = torch.zeros_like(element) + (_PURPOSE + _STRIDE * step)
    low, high = (index & 0xFFFFFFFF)[:, None], (index >> 32 & 0xFFFFFFFF)[:, None]
    words = philox4x32((element, purpose, low, high), (seed & 0xFFFFFFFF, seed >> 32))
    return torch.stack(torch.broadcast_tensors(*words), dim=2).flatten(1)[:, :count]
