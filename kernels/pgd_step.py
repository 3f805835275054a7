"""Triton kernels of pgd_step. robustfast/reference/pgd_step.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.images import clamp, per_sample
from robustfast.kernels.layout import NO_FMA, in_layout_of, is_dense_batch

__all__ = ["launch"]

_LINF: tl.constexpr = tl.constexpr(0)
_L2: tl.constexpr = tl.constexpr(1)
_SIGN: tl.constexpr = tl.constexpr(0)
_GRAD: tl.constexpr = tl.constexpr(1)
_TOPQ: tl.constexpr = tl.constexpr(2)

# Elementwise: 1024 float32 are 32 bytes a thread at four warps. Per sample: eight values a thread, since 4096 at four
# warps spill registers (float64 sums).
_BLOCK = 1024
_SAMPLE_BLOCK, _SAMPLE_WARPS = 2048, 8


@triton.jit
def _sign(g, T: tl.constexpr):
    return (g > 0).to(T) - (g < 0).to(T)


@triton.jit
def _step_linf_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, total, n,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask)
    T: tl.constexpr = x_adv.dtype
    g = tl.load(grad_ptr + offsets, mask=mask).to(T)
    x = tl.load(x_ptr + offsets, mask=mask)
    s = per_sample(step_size_ptr, step_size, offsets // n, mask, STEP_STRIDE, T)
    e = per_sample(eps_ptr, eps, offsets // n, mask, EPS_STRIDE, T)
    delta = (x_adv + s * _sign(g, T)) - x
    out = clamp(x + clamp(delta, -e, e), tl.cast(lo, T), tl.cast(hi, T))
    tl.store(out_ptr + offsets, out, mask=mask)


@triton.jit
def _gradient(grad_ptr, offsets, mask, T: tl.constexpr):
    g = tl.load(grad_ptr + offsets, mask=mask, other=0).to(T)
    return tl.where(g == g, g, 0)


@triton.jit
def _delta(x_adv_ptr, grad_ptr, x_ptr, offsets, mask, step_size, scale, threshold, STEP: tl.constexpr):
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    T: tl.constexpr = x_adv.dtype
    x = tl.load(x_ptr + offsets, mask=mask, other=0)
    g = _gradient(grad_ptr, offsets, mask, T)
    if STEP == _SIGN:
        moved = step_size * _sign(g, T)
    elif STEP == _GRAD:
        moved = tl.where(scale == 0, 0, (g.to(tl.float64) * scale)).to(T)
    else:
        moved = tl.where(tl.abs(g) >= threshold, _sign(g, tl.float64) * scale, 0).to(T)
    return (x_adv + moved) - x


@triton.jit
def _step_sample_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, n, k,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, NORM: tl.constexpr, STEP: tl.constexpr,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    x_adv_ptr += sample * n
    grad_ptr += sample * n
    x_ptr += sample * n
    out_ptr += sample * n
    step_size = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T)
    eps = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T)
    lanes = tl.arange(0, BLOCK)

    scale = tl.cast(0, tl.float64)
    threshold = tl.cast(0, T)
    if STEP != _SIGN:
        sizes = tl.zeros([BLOCK], tl.float64)
        for start in range(0, n, BLOCK):
            g = tl.abs(_gradient(grad_ptr, start + lanes, start + lanes < n, T)).to(tl.float64)
            if STEP == _TOPQ or NORM == _LINF:
                sizes = tl.maximum(sizes, g)
            else:
                sizes += g * g if NORM == _L2 else g
        if STEP == _TOPQ or NORM == _LINF:
            size = tl.max(sizes)
        elif NORM == _L2:
            size = tl.sqrt(tl.sum(sizes))
        else:
            size = tl.sum(sizes)
        # A zero or infinite gradient has no direction: the sample stays where it is.
        usable = (size > 0) & (size < float("inf"))
        if STEP == _TOPQ:
            # The k-th largest |g|, bit by bit from the top: sizes of floats order like their bit patterns.
            found = tl.cast(0, BITS)
            for i in range(BITS.primitive_bitwidth - 1):
                candidate = found | (tl.cast(1, BITS) << (BITS.primitive_bitwidth - 2 - i))
                count = tl.zeros([BLOCK], tl.int32)
                for start in range(0, n, BLOCK):
                    mask = start + lanes < n
                    bits = tl.abs(_gradient(grad_ptr, start + lanes, mask, T)).to(BITS, bitcast=True)
                    count += (mask & (bits >= candidate)).to(tl.int32)
                found = tl.where(tl.sum(count) >= k, candidate, found)
            threshold = found.to(T, bitcast=True)
            chosen = tl.zeros([BLOCK], tl.float64)
            for start in range(0, n, BLOCK):
                g = _gradient(grad_ptr, start + lanes, start + lanes < n, T)
                chosen += ((tl.abs(g) >= threshold) & (g != 0)).to(tl.float64)
            size = tl.sum(chosen)
        scale = tl.where(usable, step_size.to(tl.float64) / tl.where(usable, size, 1.0), 0.0)

    radius = eps.to(tl.float64)
    sums = tl.zeros([BLOCK], tl.float64)
    if NORM != _LINF:
        for start in range(0, n, BLOCK):
            delta = _delta(
                x_adv_ptr,
                grad_ptr,
                x_ptr,
                start + lanes,
                start + lanes < n,
                step_size,
                scale,
                threshold,
                STEP,
            )
            d = tl.abs(delta).to(tl.float64)
            sums += d * d if NORM == _L2 else d
    size = tl.sum(sums)
    if NORM == _L2:
        size = tl.sqrt(size)
    inside = size <= radius
    shrink = radius / tl.where(inside, 1.0, size)
    if NORM != _LINF and NORM != _L2:
        # Michelot's fixed point: the support only shrinks, so it ends exactly.
        shrink = (size - radius) / n
        count = tl.cast(n, tl.float64)
        last = count + 1
        while (count < last) & (size > radius):
            last = count
            above = tl.zeros([BLOCK], tl.float64)
            number = tl.zeros([BLOCK], tl.float64)
            for start in range(0, n, BLOCK):
                delta = _delta(
                    x_adv_ptr,
                    grad_ptr,
                    x_ptr,
                    start + lanes,
                    start + lanes < n,
                    step_size,
                    scale,
                    threshold,
                    STEP,
                )
                v = tl.abs(delta).to(tl.float64)
                kept = (v > shrink) & (start + lanes < n)
                above += tl.where(kept, v, 0.0)
                number += kept.to(tl.float64)
            count = tl.sum(number)
            shrink = tl.where(count > 0, (tl.sum(above) - radius) / tl.where(count > 0, count, 1.0), shrink)

    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
        delta = _delta(x_adv_ptr, grad_ptr, x_ptr, start + lanes, mask, step_size, scale, threshold, STEP)
        if NORM == _LINF:
            delta = clamp(delta, -eps, eps)
        elif NORM == _L2:
            delta = tl.where(inside, delta, (delta.to(tl.float64) * shrink).to(T))
        else:
            cut = tl.abs(delta).to(tl.float64) - shrink
            cut = _sign(delta, tl.float64) * tl.where(cut > 0, cut, 0.0)
            delta = tl.where(inside, delta, cut.to(T))
        out = clamp(x + delta, tl.cast(lo, T), tl.cast(hi, T))
        tl.store(out_ptr + start + lanes, out, mask=mask)


def launch(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: Tensor, norm: int, step: int, k: int,
    lo: float, hi: float, *, out: Tensor,
) -> None:  # fmt: skip
    """Run the step on tensors whose samples are dense and laid out alike; others are copied once."""
    if out.numel() == 0:
        return
    dense = out if is_dense_batch(out) else torch.empty_like(out, memory_format=torch.contiguous_format)
    x_adv, grad, x = (in_layout_of(t, dense) for t in (x_adv, grad, x))
    batch = dense.shape[0]
    n = dense.numel() // batch
    # A 0-d CPU tensor travels as a number (in float32, so float64 images keep it in memory); others lie on the device.
    host = [
        v.item() if v.device.type == "cpu" and v.dim() == 0 and v.dtype == torch.float32 else None
        for v in (step_size, eps)
    ]
    step_size, eps = (
        v if value is not None else v.to(x.device) for v, value in zip((step_size, eps), host, strict=True)
    )
    strides = [v.dim() if value is None else -1 for v, value in zip((step_size, eps), host, strict=True)]
    arguments = (x_adv, grad, x, dense, step_size if host[0] is None else x, eps if host[1] is None else x)
    numbers = (host[0] or 0.0, host[1] or 0.0, lo, hi)
    if norm == _LINF.value and step == _SIGN.value:
        grid = (triton.cdiv(dense.numel(), _BLOCK),)
        _step_linf_kernel[grid](*arguments, dense.numel(), n, *numbers, *strides, BLOCK=_BLOCK, **NO_FMA)
    else:
        dtype, bits = (tl.float32, tl.int32) if x.dtype == torch.float32 else (tl.float64, tl.int64)
        block = min(_SAMPLE_BLOCK, triton.next_power_of_2(n))
        _step_sample_kernel[(batch,)](
            *arguments,
            n,
            k,
            *numbers,
            *strides,
            NORM=norm,
            STEP=step,
            T=dtype,
            BITS=bits,
            BLOCK=block,
            num_warps=_SAMPLE_WARPS,
            maxnreg=128,  # left to itself ptxas spills four registers around float64 divisions
            **NO_FMA,
        )
    if dense is not out:
        out.copy_(dense)
