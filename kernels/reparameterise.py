"""Triton kernels of reparameterise. robustfast/reference/reparameterise.py is the definition."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA
from robustfast.kernels.philox import angle, exponential, in_a_row, words

__all__ = ["launch", "launch_backward"]

# The second word of the counter.
_NOISE: tl.constexpr = tl.constexpr(3)

# Quads a program draws at once: one a thread at four warps.
_BLOCK = 128

# Entries of a program of the backward.
_ENTRIES = 1024


@triton.jit
def _angles(quad, number, seed, L, SHIFT: tl.constexpr):
    """Words L + 4 * quad and the three behind it; SHIFT = L % 4 of them lie in the next quad."""
    a, b, c, d = words(L // 4 + quad, _NOISE, number, seed)
    if SHIFT == 0:
        return in_a_row(a, b, c, d)
    else:  # noqa: RET505 -- the compiler drops this branch only as an else
        e, f, g, _ = words(L // 4 + quad + 1, _NOISE, number, seed)
        if SHIFT == 1:
            return in_a_row(b, c, d, e)
        elif SHIFT == 2:  # noqa: RET505
            return in_a_row(c, d, e, f)
        else:
            return in_a_row(d, e, f, g)


@triton.jit(do_not_specialize=["seed"])
def _forward_kernel(
    mean_ptr, log_ptr, index_ptr, z_ptr, kl_ptr, shift_ptr, L,
    seed: tl.int64, SHIFT: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    number = tl.load(index_ptr + sample)
    quads = tl.arange(0, BLOCK)
    entries = tl.arange(0, 4 * BLOCK)
    sums = tl.zeros([4 * BLOCK], tl.float64)
    for start in range(0, L, 4 * BLOCK):
        quad = start // 4 + quads
        a, b, c, d = words(quad, _NOISE, number, seed)
        radius = tl.sqrt(2 * exponential(in_a_row(a, b, c, d), 32))
        noise = radius * tl.cos(angle(_angles(quad, number, seed, L, SHIFT)))
        e = start + entries
        here = e < L
        at = sample * L + e
        mean = tl.load(mean_ptr + at, mask=here, other=0).to(tl.float64)
        log = tl.load(log_ptr + at, mask=here, other=0).to(tl.float64)
        spread = tl.exp(log / 2)
        shift = spread * noise
        tl.store(z_ptr + at, (mean + shift).to(T), mask=here)
        tl.store(shift_ptr + at, shift.to(T), mask=here)
        sums += tl.where(here, mean * mean + spread * spread - 1 - log, 0.0)
    tl.store(kl_ptr + sample, (0.5 * tl.sum(sums)).to(T))


@triton.jit
def _backward_kernel(
    d_z_ptr, d_kl_ptr, mean_ptr, log_ptr, shift_ptr, d_mean_ptr, d_log_ptr, L, blocks,
    T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    here = e < L
    at = sample * L + e
    d_kl = tl.load(d_kl_ptr + sample).to(tl.float64)
    d_z = tl.load(d_z_ptr + at, mask=here, other=0).to(tl.float64)
    mean = tl.load(mean_ptr + at, mask=here, other=0).to(tl.float64)
    log = tl.load(log_ptr + at, mask=here, other=0).to(tl.float64)
    shift = tl.load(shift_ptr + at, mask=here, other=0).to(tl.float64)
    tl.store(d_mean_ptr + at, (d_z + d_kl * mean).to(T), mask=here)
    tl.store(d_log_ptr + at, (0.5 * (d_z * shift + d_kl * (tl.exp(log) - 1))).to(T), mask=here)


def _type(t: Tensor) -> tl.dtype:
    return tl.float32 if t.dtype == torch.float32 else tl.float64


def launch(mean: Tensor, log_variance: Tensor, seed: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z [B, L], the divergence [B] and what is to be kept for the backward [B, L]."""
    B, L = mean.shape
    z, shift = mean.new_empty(B, L), mean.new_empty(B, L)
    kl = mean.new_empty(B)
    if B:
        block = min(_BLOCK, triton.next_power_of_2(max(1, (L + 3) // 4)))
        _forward_kernel[(B,)](
            mean.contiguous(), log_variance.contiguous(), index.contiguous(), z, kl, shift, L, seed,
            SHIFT=L % 4, T=_type(mean), BLOCK=block, **NO_FMA,
        )  # fmt: skip
    return z, kl, shift


def launch_backward(
    grad_z: Tensor, grad_kl: Tensor, mean: Tensor, log_variance: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the means and of the log-variances, [B, L]."""
    B, L = mean.shape
    d_mean, d_log = mean.new_empty(B, L), mean.new_empty(B, L)
    if mean.numel():
        block = min(_ENTRIES, triton.next_power_of_2(L))
        blocks = triton.cdiv(L, block)
        read = (t.contiguous() for t in (grad_z, grad_kl, mean, log_variance, shift))
        _backward_kernel[(B * blocks,)](*read, d_mean, d_log, L, blocks, T=_type(mean), BLOCK=block, **NO_FMA)
    return d_mean, d_log
