"""Triton kernel of l1_projection. robustfast/reference/l1_projection.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.images import per_sample
from robustfast.kernels.l1_box import l1_entry, l1_parts, l1_project, l1_solve, l1_step
from robustfast.kernels.layout import NO_FMA, in_layout_of, is_dense_batch

__all__ = ["launch"]

# Eight values a thread: more spill registers (float64 sums).
_BLOCK, _WARPS = 2048, 8


@triton.jit
def _sums(x_adv_ptr, x_ptr, n, tau, lo, hi, lanes, BLOCK: tl.constexpr):
    """The parts of a row at one tau, and its largest size."""
    moving = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.float64)
    at_wall = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x_adv = tl.load(x_adv_ptr + start + lanes, mask=mask, other=0)
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        size, room = l1_entry(x_adv, x, lo, hi)
        a, b, c = l1_parts(size, tl.where(mask, room, 0.0), tau)
        moving += a
        count += b
        at_wall += c
        largest = tl.maximum(largest, size)
    return tl.sum(moving), tl.sum(count), tl.sum(at_wall), tl.max(largest)


@triton.jit
def _kernel(
    x_adv_ptr, x_ptr, out_ptr, eps_ptr, n, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    EPS_STRIDE: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    x_adv_ptr += sample * n
    x_ptr += sample * n
    out_ptr += sample * n
    radius = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T).to(tl.float64)
    low, high = tl.cast(lo, T), tl.cast(hi, T)
    lanes = tl.arange(0, BLOCK)
    tau = tl.cast(0, tl.float64)
    moving, count, at_wall, above = _sums(x_adv_ptr, x_ptr, n, tau, low, high, lanes, BLOCK)
    outside = moving + at_wall > radius
    below = tl.cast(0, tl.float64)
    tau = tl.where(outside & (radius <= 0), above, tau)
    i = 0
    going = outside & (radius > 0)
    # As l1_threshold of csrc/l1_box.h.
    while going & (i < 2200):
        solved = l1_solve(moving, count, at_wall, radius)
        if (solved == tau) & (i > 0):
            going = False
        else:
            following = l1_step(solved, below, above, i)
            if (following > below) & (following < above):
                tau = following
                moving, count, at_wall, _ = _sums(x_adv_ptr, x_ptr, n, tau, low, high, lanes, BLOCK)
                phi = moving - count * tau + at_wall
                going = phi != radius
                below = tl.where(phi > radius, tau, below)
                above = tl.where(phi > radius, above, tau)
            else:
                # Only neighbours are left.
                tau = tl.where((solved >= below) & (solved <= above), solved, above)
                going = False
        i += 1
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x_adv = tl.load(x_adv_ptr + start + lanes, mask=mask, other=0)
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        tl.store(out_ptr + start + lanes, l1_project(x_adv, x, tau, low, high), mask=mask)


def launch(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float, *, out: Tensor) -> None:
    """Project tensors whose samples are dense and laid out alike; others are copied once."""
    if out.numel() == 0:
        return
    dense = out if is_dense_batch(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    x_adv, x = in_layout_of(x_adv, dense), in_layout_of(x, dense)
    batch = dense.shape[0]
    n = dense.numel() // batch
    # A 0-d CPU tensor travels as a number (in float32, so float64 images keep it in memory); others lie on the device.
    host = eps.device.type == "cpu" and eps.dim() == 0 and eps.dtype == torch.float32
    stride = -1 if host else eps.dim()
    number = eps.item() if host else 0.0
    _kernel[(batch,)](
        x_adv, x, dense, x if host else eps.to(x.device), n, number, lo, hi,
        EPS_STRIDE=stride,
        T=tl.float32 if x.dtype == torch.float32 else tl.float64,
        BLOCK=min(_BLOCK, triton.next_power_of_2(n)),
        num_warps=_WARPS,
        **NO_FMA,
    )  # fmt: skip
    if dense is not out:
        out.copy_(dense)
