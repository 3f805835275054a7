"""Triton kernel of fab_projection. robustfast/reference/fab_projection.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA, in_layout_of, is_dense_batch

__all__ = ["launch"]

_LINF: tl.constexpr = tl.constexpr(0)
_L1: tl.constexpr = tl.constexpr(2)

# Eight values a thread: more spill registers (float64 sums).
_BLOCK, _WARPS = 2048, 8


@triton.jit
def _load(x_ptr, w_ptr, offsets, mask, side, lo, hi):
    """Turned normal, slope and room; all zero where masked."""
    x = tl.load(x_ptr + offsets, mask=mask, other=0).to(tl.float64)
    turned = tl.load(w_ptr + offsets, mask=mask, other=0).to(tl.float64) * side
    way = tl.where(turned > 0, x - lo, hi - x)
    return turned, tl.abs(turned), tl.where(way > 0, way, 0.0)


@triton.jit
def _project_kernel(
    x_ptr, w_ptr, b_ptr, out_ptr, n, planes, lo: tl.float64, hi: tl.float64,
    NORM: tl.constexpr, T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    plane = sample % planes
    x_ptr += sample * n
    out_ptr += sample * n
    w_ptr += plane * n
    lanes = tl.arange(0, BLOCK)
    lo, hi = tl.cast(lo, tl.float64), tl.cast(hi, tl.float64)

    dots = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0).to(tl.float64)
        dots += tl.load(w_ptr + start + lanes, mask=mask, other=0).to(tl.float64) * x
    excess = tl.sum(dots) - tl.load(b_ptr + plane).to(tl.float64)
    side = tl.where(excess < 0, -1.0, 1.0).to(tl.float64)
    gap = tl.where(excess < 0, -excess, excess)

    reaches = tl.zeros([BLOCK], tl.float64)
    pulls = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        turned, slope, room = _load(x_ptr, w_ptr, start + lanes, start + lanes < n, side, lo, hi)
        reaches += slope * room
        pulls += slope if NORM == _LINF else slope * slope
    total = tl.sum(reaches)
    usable = (gap < float("inf")) & (total < float("inf"))
    beyond = usable & (total <= gap)
    search = usable & (total > gap)

    share = tl.cast(0, tl.float64)
    if NORM == _L1:
        # The slope down to which entries take all their room, bit by bit from the top: slopes order like patterns.
        found = tl.cast(0, BITS)
        for i in range(BITS.primitive_bitwidth - 1):
            candidate = found | (tl.cast(1, BITS) << (BITS.primitive_bitwidth - 2 - i))
            sums = tl.zeros([BLOCK], tl.float64)
            for start in range(0, n, BLOCK):
                turned, slope, room = _load(x_ptr, w_ptr, start + lanes, start + lanes < n, side, lo, hi)
                bits = slope.to(T).to(BITS, bitcast=True)
                sums += tl.where(bits >= candidate, slope * room, 0.0)
            found = tl.where(tl.sum(sums) >= gap, candidate, found)
        value = found.to(T, bitcast=True).to(tl.float64)
        aboves = tl.zeros([BLOCK], tl.float64)
        ties = tl.zeros([BLOCK], tl.float64)
        for start in range(0, n, BLOCK):
            turned, slope, room = _load(x_ptr, w_ptr, start + lanes, start + lanes < n, side, lo, hi)
            aboves += tl.where(slope > value, slope * room, 0.0)
            ties += tl.where(slope == value, slope * room, 0.0)
        tied = tl.sum(ties)
        share = tl.where(tied > 0, (gap - tl.sum(aboves)) / tl.where(tied > 0, tied, 1.0), 0.0)
        share = tl.where(share > 1, 1.0, tl.where(share > 0, share, 0.0))
    else:
        # Newton from the left on a concave function: the entries at a wall only grow in number, so it ends exactly.
        pull = tl.sum(pulls)
        value = gap / tl.where(search, pull, 1.0)
        last = tl.cast(-1, tl.float64)
        count = tl.cast(0, tl.float64)
        while search & (count > last):
            last = count
            counts = tl.zeros([BLOCK], tl.float64)
            reaches = tl.zeros([BLOCK], tl.float64)
            pulls = tl.zeros([BLOCK], tl.float64)
            for start in range(0, n, BLOCK):
                mask = start + lanes < n
                turned, slope, room = _load(x_ptr, w_ptr, start + lanes, mask, side, lo, hi)
                moved = tl.zeros_like(slope) + value if NORM == _LINF else value * slope
                at_wall = mask & (room <= moved)
                counts += at_wall.to(tl.float64)
                reaches += tl.where(at_wall, slope * room, 0.0)
                pulls += tl.where(at_wall, 0.0, slope if NORM == _LINF else slope * slope)
            count = tl.sum(counts)
            pull = tl.sum(pulls)
            better = (count > last) & (pull > 0)
            value = tl.where(better, (gap - tl.sum(reaches)) / tl.where(better, pull, 1.0), value)

    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        turned, slope, room = _load(x_ptr, w_ptr, start + lanes, mask, side, lo, hi)
        if NORM == _L1:
            step = tl.where(slope > value, room, tl.where(slope == value, room * share, 0.0))
        else:
            moved = tl.zeros_like(slope) + value if NORM == _LINF else value * slope
            step = tl.where(moved < room, moved, room)
        step = tl.where(beyond, room, step)
        step = tl.where(usable, tl.where(slope > 0, step, 0.0), 0.0)
        tl.store(out_ptr + start + lanes, tl.where(turned > 0, -step, step).to(T), mask=mask)


def launch(x: Tensor, w: Tensor, b: Tensor, norm: int, lo: float, hi: float, *, out: Tensor) -> None:
    """Project samples that are dense and laid out alike; others are copied once."""
    if out.numel() == 0:
        return
    dense = out if is_dense_batch(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    x, w = in_layout_of(x, dense), in_layout_of(w, dense[: len(w)])
    n = dense.numel() // len(dense)
    dtype, bits = (tl.float32, tl.int32) if x.dtype == torch.float32 else (tl.float64, tl.int64)
    _project_kernel[(len(dense),)](
        x,
        w,
        b.contiguous(),
        dense,
        n,
        len(w),
        lo,
        hi,
        NORM=norm,
        T=dtype,
        BITS=bits,
        BLOCK=min(_BLOCK, triton.next_power_of_2(n)),
        num_warps=_WARPS,
        maxnreg=128,
        **NO_FMA,
    )
    if dense is not out:
        out.copy_(dense)
