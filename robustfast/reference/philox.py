"""Philox 4x32-10, the counter-based generator behind every random draw of this package.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["philox4x32"]

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four random words of each counter: a pure function, so draws do not depend on what was drawn before.

    Args:
        counter: four int64 tensors that broadcast together, each holding 32-bit words (0..2**32-1).
        key: two 32-bit words, numbers or int64 tensors [].

    Returns:
        Four int64 tensors of the broadcast shape, each holding uniform 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The signed products wrap modulo 2**64, which leaves the bits of the unsigned ones.
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (odd >> 32 & MASK) ^ c1 ^ k0, odd & MASK, (even >> 32 & MASK) ^ c3 ^ k1, even & MASK
        k0, k1 = k0 + WEYL[0] & MASK, k1 + WEYL[1] & MASK
    return c0, c1, c2, c3
