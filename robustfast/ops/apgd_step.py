"""`apgd_step`: a step of APGD, its momentum and both projections, fused into one pass over memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.sizes import per_sample, radius
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import apgd_step as reference

__all__ = ["apgd_step"]

NORMS = ("linf", "l2", "l1")
SPARSITY = 0.2


def apgd_step(
    x_adv: Tensor,
    x_old: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    momentum: float | Tensor = 0.75,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    sparsity: float | Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One step of Auto-PGD, from the iterate `x_adv` and the one before it, `x_old`.

    With P the projection onto the eps-ball around `x` and then onto the box, and a the momentum, Croce and Hein 2020
    (arXiv:2003.01690), algorithm 1, lines 2 and 7:

        z   = P(x_adv + step_size * direction(grad))
        out = P(x_adv + a * (z - x_adv) + (1 - a) * (x_adv - x_old))

    The direction is sign(grad) under linf and grad / |grad|_2 under l2. Under linf operations and their order are those
    of the authors' code, and so is each bit of the result. Under l2 that code adds 1e-12 to each
    norm before it divides. So does this where it divides a gradient: once the label has fallen to third place the DLR
    loss is constant, and what float64 leaves of its gradient, 1e-16, would otherwise be walked along in full steps. The
    projection divides by the norm itself.

    Under l1 the step is that of APGD-l1 (Croce and Hein 2021, arXiv:2103.01208, section 4): signs of the
    ``n - floor((1 - sparsity) * n)`` largest entries of the gradient (all entries tied with the smallest of them that
    are not zero), divided by their number, then the Euclidean projection onto the intersection of ball and box, see
    `robustfast.ops.l1_projection`. It has no momentum: `x_old` is not read.

    Hostile gradients never make NaN: a NaN entry counts as zero; under l2 and l1 a sample whose gradient is zero or
    holds an infinite entry takes no step, and only its momentum moves it; under linf an infinite entry steps by its
    sign, and sign(0) = 0.

    Args:
        x_adv, x_old, x: images [B, ...], float32 or float64, same shape, dtype and device. Contiguous or channels-last
            memory is read as it lies; an input laid out otherwise than the result costs one copy.
        grad: ascent direction [B, ...]; float32, bfloat16, float16, or float64 for float64 images.
        step_size: pixel units; float, or tensor [] or [B] of the images' dtype. Negative descends (targeted attacks).
        eps: radius in pixel units; float, or tensor [] or [B] of the images' dtype.
        momentum: weight a of the new step; float, or tensor [] or [B] of the images' dtype. 1 in the first step.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
        sparsity: fraction of the entries of a sample that an l1 step moves; float, or tensor [] or [B] of the images'
            dtype, clamped so that at least one and at most all move. None: 0.2, with which APGD-l1 begins.
        out: written instead of a new tensor; may be `x_old`, so that two buffers take turns, or `x_adv`.

    Returns:
        `out`, or a new tensor like `x_adv`. It never requires a gradient.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape, device, name or range; an expanded `out`. Values of tensors are not looked
            at (that would synchronise).
    """
    if norm not in NORMS:
        raise ValueError(f"apgd_step: norm is {norm!r}, expected one of {', '.join(NORMS)}")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"apgd_step: bounds are {bounds}, expected (lowest, highest) with lowest < highest")
    if sparsity is not None and norm != "l1":
        raise ValueError(f"apgd_step: sparsity belongs to the l1 step, norm is {norm!r}")
    _check(x_adv, x_old, grad, x, norm, out)
    sizes = (
        per_sample("apgd_step", "step_size", step_size, x),
        radius("apgd_step", eps, x, norm, bounds),
        per_sample("apgd_step", "momentum", momentum, x),
        per_sample("apgd_step", "sparsity", SPARSITY if sparsity is None else sparsity, x),
    )
    if out is None:
        out = torch.empty_like(x_adv)
    select("apgd_step", x.device)(x_adv, x_old, grad, x, *sizes, NORMS.index(norm), *bounds, out=out)
    return out


def _check(x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, norm: str, out: Tensor | None) -> None:
    # Plain `raise`: torch._check with a message that closes over a tensor breaks fullgraph tracing.
    check_tensors("apgd_step", x_adv=x_adv, x_old=x_old, grad=grad, x=x)
    check_pixels("apgd_step", x)
    if out is not None:
        check_tensors("apgd_step", out=out)
        check_writable("apgd_step", out)
    if not grad.dtype.is_floating_point or (grad.dtype == torch.float64 and x.dtype == torch.float32):
        raise TypeError(
            f"apgd_step: grad is {grad.dtype}, expected float32, bfloat16, float16 or the dtype of x, {x.dtype}"
        )
    for name, tensor in (("x_adv", x_adv), ("x_old", x_old), ("grad", grad), ("out", out)):
        if tensor is None:
            continue
        if tensor.shape != x.shape:
            raise ValueError(
                f"apgd_step: {name} has shape {tuple(tensor.shape)}, expected that of x, {tuple(x.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(f"apgd_step: {name} is on {tensor.device}, expected the device of x, {x.device}")
        if name != "grad" and tensor.dtype != x.dtype:
            raise TypeError(f"apgd_step: {name} is {tensor.dtype}, expected that of x, {x.dtype}")
    if x.dim() < 2 and norm != "linf":
        raise ValueError(
            f"apgd_step: x has shape {tuple(x.shape)}, expected [B, ...] to take the {norm} norm of each sample"
        )


def _reference(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: Tensor, momentum: Tensor,
    sparsity: Tensor, norm: int, lo: float, hi: float, *, out: Tensor,
) -> None:  # fmt: skip
    sizes = (step_size, eps, momentum, sparsity)
    out.copy_(reference.apgd_step(x_adv, x_old, grad, x, *sizes, norm=NORMS[norm], bounds=(lo, hi)))


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "apgd_step",
    "(Tensor x_adv, Tensor x_old, Tensor grad, Tensor x, Tensor step_size, Tensor eps, Tensor momentum,"
    " Tensor sparsity, int norm, float lo, float hi, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="apgd_step:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def images(
        *shape: int, dtype: torch.dtype = torch.float32, grad: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        x_adv, x_old = (
            (x + torch.empty_like(x).uniform_(-0.1, 0.1, generator=generator)).clamp(0, 1) for _ in range(2)
        )
        g = torch.randn(shape, generator=generator, dtype=torch.float64) * 1e-3
        g.flatten()[::5] = 0
        x_adv, x_old, x = (t.to(device, dtype) for t in (x_adv, x_old, x))
        return x_adv, x_old, g.to(device, grad or dtype), x

    for norm, eps, step_size in (("linf", 8 / 255, 16 / 255), ("l2", 0.5, 1.0), ("l1", 12.0, 12.0)):
        rule = {"norm": norm, "eps": eps, "step_size": step_size}
        exact = norm == "linf"
        yield Sample(norm, images(4, 3, 8, 8), rule, exact)
        yield Sample(f"{norm}-odd", images(3, 1, 7, 5), rule, exact)
        yield Sample(f"{norm}-double", images(2, 3, 5, 5, dtype=torch.float64), rule, exact)
        yield Sample(f"{norm}-bf16", images(2, 3, 9, 9, grad=torch.bfloat16), rule, exact)
        yield Sample(f"{norm}-fp16", images(2, 3, 9, 9, grad=torch.float16), rule, exact)
        sizes = {
            "eps": eps * torch.linspace(0, 1, 5, device=device),
            "step_size": torch.linspace(-step_size, step_size, 5, device=device),
            "momentum": torch.linspace(0, 1, 5, device=device),
        }
        if norm == "l1":
            sizes["sparsity"] = torch.linspace(0, 1, 5, device=device)
        yield Sample(f"{norm}-per-sample", images(5, 3, 4, 4), {**rule, **sizes}, exact)
        yield Sample(f"{norm}-first", images(5, 3, 4, 4), {**rule, "momentum": 1.0}, exact)
        yield Sample(f"{norm}-empty", images(0, 3, 4, 4), rule, exact)
        yield Sample(f"{norm}-large", images(2, 3, 41, 41), rule, exact)
        if norm != "linf":
            yield Sample(f"{norm}-32", images(2, 3, 32, 32), rule, exact)


OPS["apgd_step"] = Op("apgd_step", apgd_step, _samples, ("apgd_step",))
