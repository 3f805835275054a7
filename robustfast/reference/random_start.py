"""Random starts of an attack, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustfast.reference.philox import MASK, philox4x32

__all__ = ["random_start"]

# The second word of the counter: what a draw is for.
PIXEL, DIRECTION, RADIUS = 0, 1, 2


def random_start(
    x: Tensor, eps: Tensor, index: Tensor, *, law: str, seed: int, bounds: tuple[float, float]
) -> Tensor:
    """Move each sample of `x` to a random point of the ball of radius `eps` around it, clip to `bounds`.

    Balls are drawn in float64 and rounded once to the dtype of the images, so that the order of a sum, which differs
    between backends, almost never shows in the result.

    Args:
        x: [B, ...] float32 or float64.
        eps: [] or [B], dtype of the images.
        index: int64 [B], the sample's number in the data set.
        law: "pixel", "l2" or "l1".
        seed: 0 <= seed < 2**63.
        bounds: lowest and highest pixel value.
    """
    n = math.prod(x.shape[1:])
    if law == "pixel":
        words = _words(seed, PIXEL, index, n)[:, :n]
        # 24 bits: exact in float32, so that only the product with eps rounds, and float64 images get the same draws.
        delta = ((words >> 8) - 2**23).to(x.dtype) * 2**-23 * eps.reshape(-1, 1)
    else:
        delta = (_unit_ball(law, seed, index, n) * eps.double().reshape(-1, 1)).to(x.dtype)
    return (x + delta.reshape(x.shape)).clamp(*bounds)


def _unit_ball(law: str, seed: int, index: Tensor, n: int) -> Tensor:
    """Uniform in the unit lp ball of R^n, float64 [B, n].

    g / (sum |g|^p + e)^(1/p), with g of density ~ exp(-|t|^p) and e exponential: Barthe, Guedon, Mendelson, Naor 2005,
    A probabilistic approach to the geometry of the lp^n-ball, theorem 1.
    """
    words = _words(seed, DIRECTION, index, n)
    extra = _exponential(_words(seed, RADIUS, index, 1)[:, :1], 32)
    if law == "l2":
        # Box and Muller 1958: each pair of words is a radius and an angle.
        radius = _exponential(words[:, 0::2], 32).sqrt()
        angle = (words[:, 1::2].double() + 0.5) * (2 * math.pi * 2**-32)
        g = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(1)[:, :n]
        return g / (g.square().sum(1, keepdim=True) + extra).sqrt()
    # The lowest bit is the sign.
    g = (_exponential(words >> 1, 31) * (1 - 2 * (words & 1)))[:, :n]
    return g / (g.abs().sum(1, keepdim=True) + extra)


def _exponential(words: Tensor, bits: int) -> Tensor:
    """-log of uniforms strictly between 0 and 1: no word gives log(0), or a length of zero."""
    return -((words.double() + 0.5) * 2.0**-bits).log()


def _words(seed: int, purpose: int, index: Tensor, n: int) -> Tensor:
    """Random 32-bit words of each sample, int64 [B, n rounded up to 4]: element e takes word e % 4 of quad e // 4."""
    quads = torch.arange((n + 3) // 4, device=index.device)
    sample = index.reshape(-1, 1)
    counter = (quads, torch.full_like(quads, purpose), sample & MASK, sample >> 32 & MASK)
    return torch.stack(philox4x32(counter, (seed & MASK, seed >> 32)), dim=-1).flatten(1)
