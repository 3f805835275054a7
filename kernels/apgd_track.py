"""Triton kernel of apgd_track. robustfast/reference/apgd_track.py is the definition."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from robustfast.kernels.layout import NO_FMA, in_layout_of, is_dense_batch

__all__ = ["launch"]

_BLOCK, _WARPS = 2048, 8

# Left to itself ptxas keeps to 32, and spills four around float64.
_REGISTERS = 128


@triton.jit
def _is_largest(logits_ptr, row_stride, stride, sample, label, classes, BLOCK: tl.constexpr):
    """As torch.argmax: the first of those that tie, and a nan before any number."""
    lanes = tl.arange(0, BLOCK)
    largest = tl.cast(-float("inf"), tl.float64)
    at = tl.cast(0, tl.int64)
    broken = tl.cast(classes, tl.int64)
    for start in range(0, classes, BLOCK):
        mask = start + lanes < classes
        z = tl.load(
            logits_ptr + sample * row_stride + (start + lanes) * stride, mask=mask, other=-float("inf")
        )
        z = z.to(tl.float64)
        nan = z != z
        broken = tl.minimum(broken, tl.min(tl.where(nan, start + lanes, classes)))
        z = tl.where(nan, -float("inf"), z)
        here = tl.max(z)
        first = tl.min(tl.where(mask & (z == here), start + lanes, classes)).to(tl.int64)
        at = tl.where((start == 0) | (here > largest), first, at)
        largest = tl.maximum(largest, here)
    return label == tl.where(broken < classes, broken, at)


@triton.jit
def _copy(to_ptr, from_ptr, n, lanes, BLOCK: tl.constexpr):
    for start in range(0, n, BLOCK):
        mask = start + lanes < n
        tl.store(to_ptr + start + lanes, tl.load(from_ptr + start + lanes, mask=mask), mask=mask)


@triton.jit
def _kernel(
    x_adv_ptr, grad_ptr, x_best_ptr, grad_best_ptr, x_fooled_ptr, x_ptr,
    loss_ptr, loss_best_ptr, loss_last_ptr, loss_checked_ptr, logits_ptr, y_ptr, fooled_ptr, reduced_ptr,
    increases_ptr, moved_ptr, step_size_ptr, sparsity_ptr, eps_ptr, window_ptr,
    n, classes, loss_stride, best_stride, last_stride, checked_stride, row_stride, logit_stride, y_stride,
    fooled_stride, reduced_stride, increases_stride, moved_stride, step_stride, sparsity_stride, eps_stride,
    window, rho: tl.float64,
    WINDOW_HERE: tl.constexpr, L1: tl.constexpr, DESCEND: tl.constexpr, TARGETED: tl.constexpr,
    T: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0).to(tl.int64)
    x_adv_ptr += sample * n
    grad_ptr += sample * n
    x_best_ptr += sample * n
    grad_best_ptr += sample * n
    x_fooled_ptr += sample * n
    fooled_ptr += sample * fooled_stride
    increases_ptr += sample * increases_stride
    step_size_ptr += sample * step_stride
    lanes = tl.arange(0, BLOCK)
    loss = tl.load(loss_ptr + sample * loss_stride)
    best = tl.load(loss_best_ptr + sample * best_stride)
    last = tl.load(loss_last_ptr + sample * last_stride)
    increases = tl.load(increases_ptr)
    label = tl.load(y_ptr + sample * y_stride)
    if DESCEND:
        better = (loss == loss) & ((loss < best) | (best != best))
        rise = loss < last
    else:
        better = (loss == loss) & ((loss > best) | (best != best))
        rise = loss > last
    now = _is_largest(logits_ptr, row_stride, logit_stride, sample, label, classes, CLASSES)
    if not TARGETED:
        now = now == 0
    if now:
        tl.store(fooled_ptr, tl.full([], 1, tl.int1))
        _copy(x_fooled_ptr, x_adv_ptr, n, lanes, BLOCK)
    if better:
        tl.store(loss_best_ptr + sample * best_stride, loss)
        _copy(x_best_ptr, x_adv_ptr, n, lanes, BLOCK)
        _copy(grad_best_ptr, grad_ptr, n, lanes, BLOCK)
    best = tl.where(better, loss, best)
    increases += rise.to(tl.int64)
    tl.store(loss_last_ptr + sample * last_stride, loss)

    if WINDOW_HERE:
        steps = tl.cast(window, tl.int64)
    else:
        steps = tl.load(window_ptr)
    if steps > 0:
        step_size = tl.load(step_size_ptr)
        if L1:
            x_ptr += sample * n
            differing = tl.zeros([BLOCK], tl.int64)
            for start in range(0, n, BLOCK):
                mask = start + lanes < n
                x = tl.load(x_ptr + start + lanes, mask=mask, other=0)
                # Where the image has just become the best one it is read itself: the copy may still be under way.
                if better:
                    kept = tl.load(x_adv_ptr + start + lanes, mask=mask, other=0)
                else:
                    kept = tl.load(x_best_ptr + start + lanes, mask=mask, other=0)
                differing += (mask & (kept != x)).to(tl.int64)
            m = tl.sum(differing)
            # m < 0.95 of those before, exactly
            restart = 20 * m < 19 * tl.load(moved_ptr + sample * moved_stride)
            eps = tl.load(eps_ptr + sample * eps_stride)
            sign = tl.cast(-1 if DESCEND else 1, T)
            # Quotients of floats are rounded from double, to the same results.
            shrunk = ((sign * step_size).to(tl.float64) / tl.cast(1.5, tl.float64)).to(T)
            least = (eps.to(tl.float64) / tl.cast(10, tl.float64)).to(T)
            shrunk = tl.where(shrunk < least, least, shrunk)
            shrunk = tl.where(shrunk > eps, eps, shrunk)
            tl.store(step_size_ptr, sign * tl.where(restart, eps, shrunk))
            part = (m.to(tl.float32).to(tl.float64) / tl.cast(n, tl.float32).to(tl.float64)).to(tl.float32)
            share = (part.to(tl.float64) / tl.cast(1.5, tl.float64)).to(tl.float32)
            tl.store(sparsity_ptr + sample * sparsity_stride, share.to(T))
            tl.store(moved_ptr + sample * moved_stride, m)
        else:
            reduced_ptr += sample * reduced_stride
            checked = tl.load(loss_checked_ptr + sample * checked_stride)
            reduced = tl.load(reduced_ptr) != 0
            # In float32, as the authors' code compares.
            few = increases.to(tl.float32) <= (steps.to(tl.float64) * rho).to(tl.float32)
            if DESCEND:
                stuck = checked <= best
            else:
                stuck = checked >= best
            restart = few | ((reduced == 0) & stuck)
            tl.store(step_size_ptr, tl.where(restart, step_size * tl.cast(0.5, T), step_size))
            tl.store(reduced_ptr, restart)
            tl.store(loss_checked_ptr + sample * checked_stride, best)
        increases = tl.cast(0, tl.int64)
        if restart & (better == 0):
            _copy(x_adv_ptr, x_best_ptr, n, lanes, BLOCK)
            _copy(grad_ptr, grad_best_ptr, n, lanes, BLOCK)
    tl.store(increases_ptr, increases)


def launch(
    x_adv: Tensor, grad: Tensor, loss: Tensor, logits: Tensor, y: Tensor, x_best: Tensor, grad_best: Tensor,
    loss_best: Tensor, x_fooled: Tensor, fooled: Tensor, loss_last: Tensor, increases: Tensor,
    loss_checked: Tensor, reduced: Tensor, step_size: Tensor, x: Tensor | None, eps: Tensor | None,
    sparsity: Tensor | None, moved: Tensor | None, window: Tensor, rho: float, descend: bool, targeted: bool,
) -> None:  # fmt: skip
    """Track samples that are dense and laid out alike; others are copied there and back."""
    if x_adv.numel() == 0:
        return

    def dense(t: Tensor) -> Tensor:
        return t if is_dense_batch(t) else t.contiguous()

    image, slope = dense(x_adv), dense(grad)
    best, won, slope_best = (
        in_layout_of(t, like) for t, like in ((x_best, image), (x_fooled, image), (grad_best, slope))
    )
    batch = len(image)
    n, classes = image.numel() // batch, logits.shape[1]
    l1 = x is not None
    here = window.device.type == "cpu"
    if l1:
        eps = eps.to(image.device)
    nothing = step_size
    _kernel[(batch,)](
        image, slope, best, slope_best, won, in_layout_of(x, image) if l1 else image,
        loss, loss_best, loss_last, loss_checked, logits, y, fooled, reduced,
        increases, moved if l1 else increases, step_size, sparsity if l1 else nothing, eps if l1 else nothing,
        y if here else window,
        n, classes, loss.stride(0), loss_best.stride(0), loss_last.stride(0), loss_checked.stride(0),
        *logits.stride(), y.stride(0), fooled.stride(0), reduced.stride(0), increases.stride(0),
        moved.stride(0) if l1 else 0, step_size.stride(0), sparsity.stride(0) if l1 else 0,
        eps.stride(0) if l1 and eps.dim() else 0,
        int(window) if here else 0, rho,
        WINDOW_HERE=here, L1=l1, DESCEND=descend, TARGETED=targeted,
        T=tl.float32 if image.dtype == torch.float32 else tl.float64,
        CLASSES=min(1024, triton.next_power_of_2(classes)), BLOCK=min(_BLOCK, triton.next_power_of_2(n)),
        num_warps=_WARPS, maxnreg=_REGISTERS, **NO_FMA,
    )  # fmt: skip
    laid = ((x_adv, image), (grad, slope), (x_best, best), (grad_best, slope_best), (x_fooled, won))
    for original, copy in laid:
        if copy is not original:
            original.copy_(copy)
