"""Mixup: pairs of a batch drawn into one image each.

Source: H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, mixup: Beyond Empirical Risk Minimization, ICLR 2018. CD-VAE is
pre-trained with Beta(2, 2) and, as in the authors' code, one weight for a batch and a permutation of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from robustfast.reference.philox import MASK, philox4x32

__all__ = ["Mixed", "beta", "mixup"]

# The second word of the counter: what a draw is for.
ORDER, FIRST, SECOND = 0, 1, 2
ATTEMPTS = 16
"""For one gamma variable: at least 95 % of attempts are accepted, so all of them fail once in 10**20 variables."""


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
        x: [B, C, H, W], ``weight * x + (1 - weight) * x[partner]``.
        partner: int64 [B], a permutation of the batch: with whom each sample was mixed.
        weight: float64 [] or [B] in 0..1, the share of the sample itself. The loss to take is
            ``weight * loss(x, y) + (1 - weight) * loss(x, y[partner])``, as the paper's is linear in the label.
    """

    x: Tensor
    partner: Tensor
    weight: Tensor


def mixup(x: Tensor, *, seed: int, index: Tensor, alpha: float = 2.0, per_sample: bool = False) -> Mixed:
    """Mix each sample with a partner out of the same batch, by a weight of the law Beta(alpha, alpha).

    The permutation is uniform and a function of the seed and of which samples are in the batch, whatever their order in
    it. One weight for the batch, as published, is a function of the seed alone: a seed derived from (run seed, "mixup",
    epoch, batch) gives every batch its own, and all processes that share a batch the same. A weight for each sample is
    a function of (seed, index), hence of nothing about the batch; partners can only come from the batch at hand.

    Args:
        x: floating point [B, ...]. Values in a box stay in it: a mixture is rounded to between its two.
        seed: 0 <= seed < 2**63.
        index: int64 [B], the sample's number in the data set, in 0..2**32-1, on the device of `x`.
        alpha: above 0.
        per_sample: draw a weight for each sample in place of one for the batch.

    Raises:
        TypeError: integer images, or an index of another dtype.
        ValueError: an index of another length, an `alpha` that is not above 0, a seed out of range.
    """
    if not x.is_floating_point() or index.dtype != torch.int64:
        raise TypeError(f"x is {x.dtype} and index {index.dtype}, expected floating point and torch.int64")
    if index.shape != x.shape[:1]:
        raise ValueError(f"x is {list(x.shape)} and index {list(index.shape)}, expected [B, ...] and [B]")
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}, expected a number above 0")
    weight = beta(alpha, alpha, seed=seed, index=index if per_sample else None)
    # Two orders of the same samples, each by 63 random bits: the k-th of one is mixed with the k-th of the other.
    zero = torch.zeros_like(index)
    words = philox4x32((index, zero + ORDER, zero, zero), (seed & MASK, seed >> 32))
    ours, theirs = ((high << 31 | low >> 1).argsort() for high, low in (words[:2], words[2:]))
    partner = torch.empty_like(index).scatter_(0, ours, theirs)
    share = weight.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))
    return Mixed(torch.lerp(x[partner], x, share), partner, weight)


def beta(a: float, b: float, *, seed: int, index: Tensor | None = None) -> Tensor:
    """Draw from Beta(a, b): a pure function of the seed and, where given, of each sample's number.

    X / (X + Y) with gamma variables X and Y by G. Marsaglia, W. W. Tsang, A Simple Method for Generating Gamma
    Variables, 2000: of `ATTEMPTS` attempts, all drawn, the first that is accepted. It works in float64 and in
    logarithms, so that tiny parameters give 0 and 1 where they should, and never 0 / 0.

    Args:
        a: above 0.
        b: above 0.
        seed: 0 <= seed < 2**63.
        index: int64 [B], each in 0..2**32-1; None: one draw, with no number.

    Returns:
        float64 [B] on the device of `index`, or [] on the CPU.

    Raises:
        ValueError: `a` or `b` not above 0 or not finite, a seed out of range.
    """
    for name, value in (("a", a), ("b", b)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected a number above 0")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}, expected 0 to 2**63 - 1")
    sample = torch.zeros(1, dtype=torch.int64) if index is None else index
    lone = int(index is None)
    drawn = torch.sigmoid(
        _log_gamma(a, seed, sample, FIRST, lone) - _log_gamma(b, seed, sample, SECOND, lone)
    )
    return drawn[0] if index is None else drawn


def _log_gamma(shape: float, seed: int, sample: Tensor, purpose: int, lone: int) -> Tensor:
    """Logarithms of gamma variables, float64 [B]; `lone` is 1 for the draw without a number and 0 for all others."""
    attempt = torch.arange(ATTEMPTS, device=sample.device)
    counter = (sample[:, None], torch.full_like(attempt, purpose), attempt, torch.full_like(attempt, lone))
    uniform = [(word.double() + 0.5) * 2**-32 for word in philox4x32(counter, (seed & MASK, seed >> 32))]
    # A shape below 1 is drawn as the shape above it times a uniform to the power of 1 / shape.
    d = shape + (shape < 1) - 1 / 3
    normal = (-2 * uniform[0].log()).sqrt() * (2 * math.pi * uniform[1]).cos()
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    log_v = v.clamp(min=1e-300).log()
    accepted = (v > 0) & (uniform[2].log() < 0.5 * normal.square() + d - d * v + d * log_v)
    first = accepted.int().argmax(dim=1, keepdim=True)  # of equal values argmax gives the first
    drawn = math.log(d) + log_v.gather(1, first)[:, 0]
    return drawn + uniform[3][:, 0].log() / shape if shape < 1 else drawn
