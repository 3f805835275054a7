"""Philox 4x32-10 in Triton kernels: the words of a sample's quads. robustfast/reference/philox.py is the definition."""

import triton
import triton.language as tl

__all__ = ["angle", "exponential", "in_a_row", "words"]


@triton.jit
def words(quad, purpose: tl.constexpr, number, seed):
    """The four words of each quad of sample `number`; `purpose` is the counter's second word, what a draw is for."""
    none = quad * 0
    low = (number & 0xFFFFFFFF).to(tl.uint32) + none.to(tl.uint32)
    high = ((number >> 32) & 0xFFFFFFFF).to(tl.uint32) + none.to(tl.uint32)
    return tl.philox(seed, quad, none + purpose, low, high)


@triton.jit
def in_a_row(a, b, c, d):
    """The four values of each quad in a row."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def exponential(word, BITS: tl.constexpr):
    """-log of a word of so many bits as a number in (0, 1)."""
    return -tl.log((word.to(tl.float64) + 0.5) * (1.0 / 2**BITS))


@triton.jit
def angle(word):
    """2 pi times a word of 32 bits as a number in (0, 1)."""
    return (word.to(tl.float64) + 0.5) * 1.46291807926715968e-09
