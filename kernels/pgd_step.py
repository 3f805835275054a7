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

# Launch parameters, of which bench/tune.py tries others. linf: elements and warps a program. Held: a sample of up to so
# many elements stays in registers, eight a thread; more spill (float64 sums). Split: elements and warps of a pass, and
# how many passes a program of the first phase takes.
LAUNCH = {
    "linf_block": 1024,
    "linf_warps": 4,
    "held_elements": 4096,
    "held_elements_a_thread": 8,
    "split_block": 2048,
    "split_warps": 8,
    "split_passes": 8,
}
_REREAD_BLOCK, _REREAD_WARPS = 2048, 8


@triton.jit
def _sign(g, T: tl.constexpr):
    return (g > 0).to(T) - (g < 0).to(T)


@triton.jit
def _step_linf_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, n, across,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # `across` programs a sample: one division each, where offsets // n would be one per element.
    sample = tl.program_id(0) // across
    inside = (tl.program_id(0) % across).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = inside < n
    offsets = sample.to(tl.int64) * n + inside
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask)
    T: tl.constexpr = x_adv.dtype
    g = tl.load(grad_ptr + offsets, mask=mask).to(T)
    x = tl.load(x_ptr + offsets, mask=mask)
    s = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T)
    e = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T)
    delta = (x_adv + s * _sign(g, T)) - x
    out = clamp(x + clamp(delta, -e, e), tl.cast(lo, T), tl.cast(hi, T))
    tl.store(out_ptr + offsets, out, mask=mask)


@triton.jit
def _gradient(grad_ptr, offsets, mask, T: tl.constexpr):
    g = tl.load(grad_ptr + offsets, mask=mask, other=0).to(T)
    return tl.where(g == g, g, 0)


@triton.jit
def _moved(x_adv, g, x, step_size, scale, threshold, STEP: tl.constexpr):
    T: tl.constexpr = x_adv.dtype
    if STEP == _SIGN:
        moved = step_size * _sign(g, T)
    elif STEP == _GRAD:
        moved = tl.where(scale == 0, 0, (g.to(tl.float64) * scale)).to(T)
    else:
        moved = tl.where(tl.abs(g) >= threshold, _sign(g, tl.float64) * scale, 0).to(T)
    return (x_adv + moved) - x


@triton.jit
def _delta(x_adv_ptr, grad_ptr, x_ptr, offsets, mask, step_size, scale, threshold, STEP: tl.constexpr):
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    x = tl.load(x_ptr + offsets, mask=mask, other=0)
    g = _gradient(grad_ptr, offsets, mask, x_adv.dtype)
    return _moved(x_adv, g, x, step_size, scale, threshold, STEP)


@triton.jit
def _scale(step_size, size, usable):
    # A zero or infinite gradient has no direction: the sample stays where it is.
    return tl.where(usable, step_size.to(tl.float64) / tl.where(usable, size, 1.0), 0.0)


@triton.jit
def _project(delta, inside, shrink, NORM: tl.constexpr):
    T: tl.constexpr = delta.dtype
    if NORM == _L2:
        moved = delta.to(tl.float64) * shrink
    else:
        cut = tl.abs(delta).to(tl.float64) - shrink
        moved = _sign(delta, tl.float64) * tl.where(cut > 0, cut, 0.0)
    return tl.where(inside, delta, moved.to(T))


@triton.jit
def _step_held_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, n, k,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, NORM: tl.constexpr, STEP: tl.constexpr,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """l2 and l1 where a program holds a sample in registers: one read, one write."""
    sample = tl.program_id(0)
    step_size = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T)
    eps = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T)
    mask = tl.arange(0, BLOCK) < n
    offsets = sample.to(tl.int64) * n + tl.arange(0, BLOCK)
    g = _gradient(grad_ptr, offsets, mask, T)
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    x = tl.load(x_ptr + offsets, mask=mask, other=0)

    scale = tl.cast(0, tl.float64)
    threshold = tl.cast(0, T)
    if STEP == _GRAD:
        wide = tl.abs(g).to(tl.float64)
        size = tl.sqrt(tl.sum(wide * wide)) if NORM == _L2 else tl.sum(wide)
        scale = _scale(step_size, size, (size > 0) & (size < float("inf")))
    elif STEP == _TOPQ:
        # The k-th largest |g|, bit by bit from the top: sizes of floats order like their bit patterns.
        bits = tl.abs(g).to(BITS, bitcast=True)
        found = tl.cast(0, BITS)
        for i in range(BITS.primitive_bitwidth - 1):
            candidate = found | (tl.cast(1, BITS) << (BITS.primitive_bitwidth - 2 - i))
            count = tl.sum((mask & (bits >= candidate)).to(tl.int32))
            found = tl.where(count >= k, candidate, found)
        threshold = found.to(T, bitcast=True)
        largest = tl.max(tl.abs(g))
        chosen = tl.sum(((tl.abs(g) >= threshold) & (g != 0)).to(tl.int32)).to(tl.float64)
        scale = _scale(step_size, chosen, (largest > 0) & (largest < float("inf")))

    delta = _moved(x_adv, g, x, step_size, scale, threshold, STEP)
    wide = tl.abs(delta).to(tl.float64)
    radius = eps.to(tl.float64)
    size = tl.sqrt(tl.sum(wide * wide)) if NORM == _L2 else tl.sum(wide)
    inside = size <= radius
    shrink = radius / tl.where(inside, 1.0, size)
    if NORM != _L2:
        # Michelot's fixed point: the support only shrinks, so it ends exactly.
        shrink = (size - radius) / n
        count = tl.cast(n, tl.float64)
        last = count + 1
        while (count < last) & (size > radius):
            last = count
            kept = wide > shrink
            above = tl.sum(tl.where(kept, wide, 0.0))
            count = tl.sum(kept.to(tl.int32)).to(tl.float64)
            shrink = tl.where(count > 0, (above - radius) / tl.where(count > 0, count, 1.0), shrink)
    out = clamp(x + _project(delta, inside, shrink, NORM), tl.cast(lo, T), tl.cast(hi, T))
    tl.store(out_ptr + offsets, out, mask=mask)


@triton.jit
def _sums_kernel(
    x_adv_ptr, grad_ptr, x_ptr, sums_ptr, step_size_ptr, n, parts, step_size: tl.float64,
    STEP_STRIDE: tl.constexpr, STEP: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, PASSES: tl.constexpr,
):  # fmt: skip
    """l2, first phase: of one part of a sample the sums that its step needs, [3] of them to a part.

    Of a sign step |delta|^2. Of a gradient step |d|^2, <d, g> and |g|^2 with d = x_adv - x, since
    |d + s g|^2 = |d|^2 + 2 s <d, g> + s^2 |g|^2 needs no second pass when s is known.
    """
    sample = tl.program_id(0) // parts
    start = (tl.program_id(0) % parts) * BLOCK * PASSES
    step_size = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T)
    base = sample.to(tl.int64) * n
    first = tl.zeros([BLOCK], tl.float64)
    mixed = tl.zeros([BLOCK], tl.float64)
    second = tl.zeros([BLOCK], tl.float64)
    for i in range(PASSES):
        inside = start + i * BLOCK + tl.arange(0, BLOCK)
        mask = inside < n
        g = _gradient(grad_ptr, base + inside, mask, T)
        x_adv = tl.load(x_adv_ptr + base + inside, mask=mask, other=0)
        x = tl.load(x_ptr + base + inside, mask=mask, other=0)
        if STEP == _SIGN:
            d = ((x_adv + step_size * _sign(g, T)) - x).to(tl.float64)
        else:
            d = (x_adv - x).to(tl.float64)
            wide = g.to(tl.float64)
            mixed += d * wide
            second += wide * wide
        first += d * d
    at = sums_ptr + tl.program_id(0).to(tl.int64) * 3
    tl.store(at, tl.sum(first))
    tl.store(at + 1, tl.sum(mixed))
    tl.store(at + 2, tl.sum(second))


@triton.jit
def _apply_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, sums_ptr, n, across, parts, batch,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, STEP: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """l2, second phase: move, project and write. The last samples first: of those a cache may still hold the most."""
    sample = batch - 1 - tl.program_id(0) // across
    inside = (tl.program_id(0) % across) * BLOCK + tl.arange(0, BLOCK)
    mask = inside < n
    offsets = sample.to(tl.int64) * n + inside
    g = _gradient(grad_ptr, offsets, mask, T)
    x_adv = tl.load(x_adv_ptr + offsets, mask=mask, other=0)
    x = tl.load(x_ptr + offsets, mask=mask, other=0)
    step_size = per_sample(step_size_ptr, step_size, sample, True, STEP_STRIDE, T)
    eps = per_sample(eps_ptr, eps, sample, True, EPS_STRIDE, T)
    part = tl.arange(0, PARTS)
    at = sums_ptr + (sample.to(tl.int64) * parts + part) * 3
    length = tl.sum(tl.load(at, mask=part < parts, other=0))
    scale = tl.cast(0, tl.float64)
    if STEP == _GRAD:
        mixed = tl.sum(tl.load(at + 1, mask=part < parts, other=0))
        square = tl.sum(tl.load(at + 2, mask=part < parts, other=0))
        usable = (square > 0) & (square < float("inf"))
        scale = _scale(step_size, tl.sqrt(square), usable)
        moved = scale * tl.sqrt(square)
        length += tl.where(usable, 2 * scale * mixed + moved * moved, 0.0)
        length = tl.where(length > 0, length, 0.0)
    delta = _moved(x_adv, g, x, step_size, scale, tl.cast(0, T), STEP)
    size = tl.sqrt(length)
    radius = eps.to(tl.float64)
    moves = size <= radius
    delta = _project(delta, moves, radius / tl.where(moves, 1.0, size), _L2)
    tl.store(out_ptr + offsets, clamp(x + delta, tl.cast(lo, T), tl.cast(hi, T)), mask=mask)


@triton.jit
def _step_reread_kernel(
    x_adv_ptr, grad_ptr, x_ptr, out_ptr, step_size_ptr, eps_ptr, n, k,
    step_size: tl.float64, eps: tl.float64, lo: tl.float64, hi: tl.float64,
    STEP_STRIDE: tl.constexpr, EPS_STRIDE: tl.constexpr, NORM: tl.constexpr, STEP: tl.constexpr,
    T: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """linf along the gradient, and l1 of samples that no program holds: each sum reads the sample again."""
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
                sizes += g
        size = tl.max(sizes) if STEP == _TOPQ or NORM == _LINF else tl.sum(sizes)
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
        scale = _scale(step_size, size, usable)

    inside = True
    shrink = tl.cast(0, tl.float64)
    if NORM != _LINF:
        sums = tl.zeros([BLOCK], tl.float64)
        for start in range(0, n, BLOCK):
            mask = start + lanes < n
            delta = _delta(x_adv_ptr, grad_ptr, x_ptr, start + lanes, mask, step_size, scale, threshold, STEP)
            sums += tl.abs(delta).to(tl.float64)
        size = tl.sum(sums)
        radius = eps.to(tl.float64)
        inside = size <= radius
        # Michelot's fixed point: the support only shrinks, so it ends exactly.
        shrink = (size - radius) / n
        count = tl.cast(n, tl.float64)
        last = count + 1
        while (count < last) & (size > radius):
            last = count
            above = tl.zeros([BLOCK], tl.float64)
            number = tl.zeros([BLOCK], tl.float64)
            for start in range(0, n, BLOCK):
                mask = start + lanes < n
                delta = _delta(
                    x_adv_ptr, grad_ptr, x_ptr, start + lanes, mask, step_size, scale, threshold, STEP
                )
                v = tl.abs(delta).to(tl.float64)
                kept = (v > shrink) & mask
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
        else:
            delta = _project(delta, inside, shrink, NORM)
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
    images = (x_adv, grad, x, dense)
    sizes = (step_size if host[0] is None else x, eps if host[1] is None else x)
    numbers = (host[0] or 0.0, host[1] or 0.0, lo, hi)
    held = n <= LAUNCH["held_elements"] // (x.dtype.itemsize // 4)
    if norm == _LINF.value and step == _SIGN.value:
        if max(strides) < 1:
            # One size for all samples: the whole batch is one.
            batch, n = 1, dense.numel()
        block = LAUNCH["linf_block"]
        across = triton.cdiv(n, block)
        options = {"num_warps": LAUNCH["linf_warps"], **NO_FMA}
        _step_linf_kernel[(batch * across,)](
            *images, *sizes, n, across, *numbers, *strides, BLOCK=block, **options
        )
    elif norm == _L2.value and not held:
        _in_two_phases(images, sizes, numbers, strides, step, batch, n)
    else:
        dtype, bits = (tl.float32, tl.int32) if x.dtype == torch.float32 else (tl.float64, tl.int64)
        rule = {"NORM": norm, "STEP": step, "T": dtype, "BITS": bits}
        if held and norm != _LINF.value:
            block = max(32, triton.next_power_of_2(n))
            warps = min(32, max(1, block // (32 * LAUNCH["held_elements_a_thread"])))
            _step_held_kernel[(batch,)](
                *images, *sizes, n, k, *numbers, *strides, **rule, BLOCK=block, num_warps=warps, **NO_FMA
            )
        else:
            block = min(_REREAD_BLOCK, triton.next_power_of_2(n))
            # Left to itself ptxas spills four registers around float64 divisions.
            options = {"num_warps": _REREAD_WARPS, "maxnreg": 128, **NO_FMA}
            _step_reread_kernel[(batch,)](
                *images, *sizes, n, k, *numbers, *strides, **rule, BLOCK=block, **options
            )
    if dense is not out:
        out.copy_(dense)


def _in_two_phases(
    images: tuple[Tensor, ...], sizes: tuple[Tensor, ...], numbers: tuple[float, ...], strides: list[int],
    step: int, batch: int, n: int,
) -> None:  # fmt: skip
    """l2 of samples that no program holds. The sums of their parts need memory between the phases: 24 bytes a part."""
    x_adv, grad, x = images[:3]
    block, passes = LAUNCH["split_block"], LAUNCH["split_passes"]
    parts, across = triton.cdiv(n, block * passes), triton.cdiv(n, block)
    sums = torch.empty(batch * parts * 3, dtype=torch.float64, device=x.device)
    dtype = tl.float32 if x.dtype == torch.float32 else tl.float64
    options = {"STEP": step, "T": dtype, "BLOCK": block, "num_warps": LAUNCH["split_warps"], **NO_FMA}
    _sums_kernel[(batch * parts,)](
        x_adv, grad, x, sums, sizes[0], n, parts, numbers[0], strides[0], PASSES=passes, **options
    )
    _apply_kernel[(batch * across,)](
        *images,
        *sizes,
        sums,
        n,
        across,
        parts,
        batch,
        *numbers,
        *strides,
        PARTS=triton.next_power_of_2(parts),
        **options,
    )
