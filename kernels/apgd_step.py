"""Triton kernels of apgd_step. robustfast/reference/apgd_step.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.images import clamp, per_sample
from robustfast.kernels.l1_box import l1_entry, l1_parts, l1_project, l1_solve, l1_step
from robustfast.kernels.layout import NO_FMA, in_layout_of, is_dense_batch

__all__ = ["launch"]

_LINF: tl.constexpr = tl.constexpr(0)
_L2: tl.constexpr = tl.constexpr(1)

# kApgdTiny of csrc/apgd_step.h.
_TINY: tl.constexpr = tl.constexpr(1e-12)

# Elementwise: 1024 float32 are 32 bytes a thread at four warps. Per sample: eight values a thread under l2, four under
# l1, whose four sums in float64 spill registers with eight.
_BLOCK = 1024
_L2_BLOCK, _L1_BLOCK, _WARPS = 2048, 1024, 8


@triton.jit
def _sign(g, T: tl.constexpr):
    return (g > 0).to(T) - (g < 0).to(T)


@triton.jit
def _mix(x_adv, z, x_old, weight, before):
    """The step to z and the last one, in the order of the authors' code; before is 1 - weight."""
    return (x_adv + (z - x_adv) * weight) + (x_adv - x_old) * before


@triton.jit
def _linf_kernel(
    x_adv_ptr, x_old_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, momentum_ptr, total, n,
    step_size: tl.float64, eps: tl.float64, momentum: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, MOMENTUM_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask)
    T: tl.constexpr = x_adv.dtype
    x_old = tl.load(x_old_ptr + offsets, mask=mask)
    g = tl.load(grad_ptr + offsets, mask=mask).to(T)
    x = tl.load(x_ptr + offsets, mask=mask)
    s = per_sample(step_size_ptr, step_size, offsets // n, mask, STEP_STRIDE, T)
    e = per_sample(eps_ptr, eps, offsets // n, mask, EPS_STRIDE, T)
    a = per_sample(momentum_ptr, momentum, offsets // n, mask, MOMENTUM_STRIDE, T)
    low, high, floor, ceiling = x - e, x + e, tl.cast(lo, T), tl.cast(hi, T)
    z = clamp(clamp(x_adv + s * _sign(g, T), low, high), floor, ceiling)
    out = clamp(clamp(_mix(x_adv, z, x_old, a, tl.cast(1, T) - a), low, high), floor, ceiling)
    tl.store(out_ptr + offsets, out, mask=mask)


@triton.jit
def _gradient(grad_ptr, offsets, mask, T: tl.constexpr):
    g = tl.load(grad_ptr + offsets, mask=mask, other=0).to(T)
    return tl.where(g == g, g, 0)


@triton.jit
def _ball(delta, inside, shrink):
    return tl.where(inside, delta, (delta.to(tl.float64) * shrink).to(delta.dtype))


@triton.jit
def _stepped(x_adv_ptr, grad_ptr, x, offsets, mask, scale):
    """Image and step, seen from x, before the first projection."""
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    g = _gradient(grad_ptr, offsets, mask, x_adv.dtype)
    moved = tl.where(scale == 0, 0, g.to(tl.float64) * scale).to(x_adv.dtype)
    return x_adv, (x_adv + moved) - x


@triton.jit
def _mixed(
    x_adv_ptr, x_old_ptr, grad_ptr, x, offsets, mask, scale, inside, shrink, weight, before, lo, hi
):  # fmt: skip
    """Where the sample goes before the second projection, seen from x."""
    x_adv, delta = _stepped(x_adv_ptr, grad_ptr, x, offsets, mask, scale)
    x_old = tl.load(x_old_ptr + offsets, mask=mask, other=0)
    z = clamp(x + _ball(delta, inside, shrink), lo, hi)
    return tl.where(mask, _mix(x_adv, z, x_old, weight, before) - x, 0)


@triton.jit
def _l2_kernel(
    x_adv_ptr, x_old_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, momentum_ptr, n,
    step_size: tl.float64, eps: tl.float64, momentum: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, MOMENTUM_STRIDE: tl.constexpr,
    T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    x_adv_ptr += sample * n
    x_old_ptr += sample * n
    grad_ptr += sample * n
    x_ptr += sample * n
    out_ptr += sample * n
    s = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T).to(tl.float64)
    radius = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T).to(tl.float64)
    weight = per_sample(momentum_ptr, momentum, sample, True, MOMENTUM_STRIDE, T)
    before = tl.cast(1, T) - weight
    floor, ceiling = tl.cast(lo, T), tl.cast(hi, T)
    lanes = tl.arange(0, BLOCK)

    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        g = _gradient(grad_ptr, start + lanes, start + lanes < n, T).to(tl.float64)
        sums += g * g
    size = tl.sqrt(tl.sum(sums))
    # A zero or infinite gradient has no direction.
    usable = (size > 0) & (size < float("inf"))
    scale = tl.where(usable, s / (tl.where(usable, size, 1.0) + _TINY), 0.0)

    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        _, delta = _stepped(x_adv_ptr, grad_ptr, x, start + lanes, mask, scale)
        d = delta.to(tl.float64)
        sums += d * d
    size = tl.sqrt(tl.sum(sums))
    inside = size <= radius
    shrink = radius / tl.where(inside, 1.0, size)

    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        delta = _mixed(
            x_adv_ptr, x_old_ptr, grad_ptr, x, start + lanes, mask, scale, inside, shrink, weight, before, floor,
            ceiling,
        )  # fmt: skip
        d = delta.to(tl.float64)
        sums += d * d
    size = tl.sqrt(tl.sum(sums))
    inside_again = size <= radius
    shrink_again = radius / tl.where(inside_again, 1.0, size)

    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        delta = _mixed(
            x_adv_ptr, x_old_ptr, grad_ptr, x, start + lanes, mask, scale, inside, shrink, weight, before, floor,
            ceiling,
        )  # fmt: skip
        out = clamp(x + _ball(delta, inside_again, shrink_again), floor, ceiling)
        tl.store(out_ptr + start + lanes, out, mask=mask)


@triton.jit
def _sparse(x_adv_ptr, grad_ptr, offsets, mask, threshold, scale):
    """The point after the sparse step, before it is projected."""
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    g = _gradient(grad_ptr, offsets, mask, x_adv.dtype)
    moved = tl.where(tl.abs(g) >= threshold, _sign(g, tl.float64) * scale, 0)
    return x_adv + moved.to(x_adv.dtype)


@triton.jit
def _sums(x_adv_ptr, grad_ptr, x_ptr, n, threshold, scale, tau, lo, hi, lanes, BLOCK: tl.constexpr):
    """The parts of a row at one tau, and its largest size: see l1_projection."""
    moving = tl.zeros([BLOCK], tl.float64)
    count = tl.zeros([BLOCK], tl.float64)
    at_wall = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], tl.float64)
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        point = _sparse(x_adv_ptr, grad_ptr, start + lanes, mask, threshold, scale)
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        size, room = l1_entry(point, x, lo, hi)
        a, b, c = l1_parts(size, tl.where(mask, room, 0.0), tau)
        moving += a
        count += b
        at_wall += c
        largest = tl.maximum(largest, size)
    return tl.sum(moving), tl.sum(count), tl.sum(at_wall), tl.max(largest)


@triton.jit
def _l1_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, sparsity_ptr, n,
    step_size: tl.float64, eps: tl.float64, sparsity: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, SPARSITY_STRIDE: tl.constexpr,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    x_adv_ptr += sample * n
    grad_ptr += sample * n
    x_ptr += sample * n
    out_ptr += sample * n
    s = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T).to(tl.float64)
    radius = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T).to(tl.float64)
    share = per_sample(sparsity_ptr, sparsity, sample, True, SPARSITY_STRIDE, T).to(tl.float32)
    low, high = tl.cast(lo, T), tl.cast(hi, T)
    lanes = tl.arange(0, BLOCK)

    # As apgd_entries of csrc/apgd_step.h.
    rank = (1.0 - share) * tl.cast(n, tl.float32)
    last = tl.cast(n - 1, tl.float32)
    rank = tl.where(rank > 0, tl.where(rank < last, rank, last), 0.0)
    k = n - rank.to(tl.int32)
    # The k-th largest |g|, bit by bit from the top: sizes of floats order like their bit patterns.
    found = tl.cast(0, BITS)
    for i in range(BITS.primitive_bitwidth - 1):
        candidate = found | (tl.cast(1, BITS) << (BITS.primitive_bitwidth - 2 - i))
        number = tl.zeros([BLOCK], tl.int32)
        for start in range(0, n, BLOCK):
            mask = start + lanes < n
            bits = tl.abs(_gradient(grad_ptr, start + lanes, mask, T)).to(BITS, bitcast=True)
            number += (mask & (bits >= candidate)).to(tl.int32)
        found = tl.where(tl.sum(number) >= k, candidate, found)
    threshold = found.to(T, bitcast=True)
    chosen = tl.zeros([BLOCK], tl.float64)
    sizes = tl.zeros([BLOCK], T)
    for start in range(0, n, BLOCK):
        g = _gradient(grad_ptr, start + lanes, start + lanes < n, T)
        chosen += ((tl.abs(g) >= threshold) & (g != 0)).to(tl.float64)
        sizes = tl.maximum(sizes, tl.abs(g))
    largest = tl.max(sizes)
    # A zero or infinite gradient has no direction.
    usable = (largest > 0) & (largest < float("inf"))
    scale = tl.where(usable, s / tl.where(usable, tl.sum(chosen), 1.0), 0.0)

    tau = tl.cast(0, tl.float64)
    moving, count, at_wall, above = _sums(
        x_adv_ptr, grad_ptr, x_ptr, n, threshold, scale, tau, low, high, lanes, BLOCK
    )
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
                moving, count, at_wall, _ = _sums(
                    x_adv_ptr, grad_ptr, x_ptr, n, threshold, scale, tau, low, high, lanes, BLOCK
                )
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
        point = _sparse(x_adv_ptr, grad_ptr, start + lanes, mask, threshold, scale)
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        tl.store(out_ptr + start + lanes, l1_project(point, x, tau, low, high), mask=mask)


def _number(value: Tensor, x: Tensor) -> tuple[Tensor, float, int]:
    """A size as kernels take it: a tensor, a number, and the stride that tells which of them counts."""
    # A 0-d CPU tensor travels as a number (in float32, so float64 images keep it in memory); others lie on the device.
    if value.device.type == "cpu" and value.dim() == 0 and value.dtype == torch.float32:
        return x, value.item(), -1
    return value.contiguous().to(x.device), 0.0, value.dim()


def launch(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: Tensor, momentum: Tensor,
    sparsity: Tensor, norm: int, lo: float, hi: float, *, out: Tensor,
) -> None:  # fmt: skip
    """Run the step on tensors whose samples are dense and laid out alike; others are copied once."""
    if out.numel() == 0:
        return
    dense = out if is_dense_batch(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    x_adv, x_old, grad, x = (in_layout_of(t, dense) for t in (x_adv, x_old, grad, x))
    batch = dense.shape[0]
    n = dense.numel() // batch
    (s, step, s_stride), (e, radius, e_stride) = _number(step_size, x), _number(eps, x)
    w, weight, w_stride = _number(momentum if norm in (_LINF.value, _L2.value) else sparsity, x)
    numbers = (step, radius, weight, lo, hi)
    strides = (s_stride, e_stride, w_stride)
    if norm == _LINF.value:
        grid = (triton.cdiv(dense.numel(), _BLOCK),)
        _linf_kernel[grid](
            x_adv,
            x_old,
            grad,
            x,
            dense,
            s,
            e,
            w,
            dense.numel(),
            n,
            *numbers,
            *strides,
            BLOCK=_BLOCK,
            **NO_FMA,
        )
    else:
        dtype, bits = (tl.float32, tl.int32) if x.dtype == torch.float32 else (tl.float64, tl.int64)
        largest = _L2_BLOCK if norm == _L2.value else _L1_BLOCK
        options = {"BLOCK": min(largest, triton.next_power_of_2(n)), "num_warps": _WARPS, **NO_FMA}
        if norm == _L2.value:
            _l2_kernel[(batch,)](
                x_adv, x_old, grad, x, dense, s, e, w, n, *numbers, *strides, T=dtype, **options
            )
        else:
            _l1_kernel[(batch,)](
                x_adv, grad, x, dense, s, e, w, n, *numbers, *strides, T=dtype, BITS=bits, **options
            )
    if dense is not out:
        out.copy_(dense)
