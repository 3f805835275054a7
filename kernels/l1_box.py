"""The nearest point of an l1 ball inside the box, row by row: csrc/l1_box.h for Triton kernels."""

import triton
import triton.language as tl

from robustfast.kernels.images import clamp

__all__ = ["l1_entry", "l1_parts", "l1_project", "l1_solve", "l1_step"]

# kL1Reach of csrc/l1_box.h.
_REACH: tl.constexpr = tl.constexpr(1e6)


@triton.jit
def l1_entry(x_adv, x, lo, hi):
    """How far entries lie from x, and how far they may go before the wall on their side, in float64."""
    delta = x_adv - x
    size = tl.abs(delta).to(tl.float64)
    room = tl.where(delta > 0, hi - x, x - lo).to(tl.float64)
    # NaN compares false to everything, and counts as x itself.
    return tl.where(size > 0, tl.where(size < _REACH, size, _REACH), 0.0), tl.where(room > 0, room, 0.0)


@triton.jit
def l1_parts(size, room, tau):
    """What entries add to L1Parts of csrc/l1_box.h at one tau: moving, count and at_wall."""
    walled = size - room >= tau
    moves = (size > tau) & (size - room < tau)
    return tl.where(moves, size, 0.0), moves.to(tl.float64), tl.where(walled, room, 0.0)


@triton.jit
def l1_solve(moving, count, at_wall, eps):
    """The tau that solves the straight piece whose parts these are; -1 where nothing moves."""
    return tl.where(count > 0, (moving + at_wall - eps) / tl.where(count > 0, count, 1.0), -1.0)


@triton.jit
def l1_step(solved, below, above, i):
    """The tau to look at next: the solution where it lies in the bracket, else the middle."""
    newton = (solved > below) & (solved < above) & ((i < 16) | (i % 2 == 1))
    return tl.where(newton, solved, below + (above - below) / 2)


@triton.jit
def l1_project(x_adv, x, tau, lo, hi):
    """The entries of the projection, for the tau of their row."""
    delta = x_adv - x
    size, _ = l1_entry(x_adv, x, lo, hi)
    shrunk = tl.where(size > tau, size - tau, 0.0)
    moved = x + tl.where(delta < 0, -shrunk, shrunk).to(x.dtype)
    return clamp(tl.where(tau == 0, tl.where(x_adv == x_adv, x_adv, x), moved), lo, hi)
