"""`l1_projection`: the nearest point of an l1 ball inside the box, without a sort."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.sizes import radius
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import l1_projection as reference

__all__ = ["l1_projection"]


def l1_projection(
    x_adv: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    bounds: tuple[float, float] = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """Project images onto {z: |z - x|_1 <= eps, lo <= z <= hi}, the l1 ball around `x` inside the box.

    The Euclidean projection onto the intersection, exactly (Croce and Hein 2021, arXiv:2103.01208, proposition 2.1),
    as APGD takes it under l1: clipping after a projection onto the ball alone, which `pgd_step` does, gives up most of
    the ball, as steepest l1 steps push few entries far beyond the walls. It is
    clip(x + sign(d) max(\\|d\\| - tau, 0)) with d = x_adv - x and the one tau >= 0 that fills the ball. AutoAttack
    finds tau by sorting two numbers per entry in float32; here each row looks for it by Newton's step on the straight
    pieces of the dual, in float64, which ends on the piece that holds it: no sort, one launch. Images in ball and box
    are returned as they are.

    Args:
        x_adv: images to project [B, ...], float32 or float64. A nan entry counts as that of `x`, one farther than 1e6
            away as 1e6.
        x: centres like `x_adv`, inside `bounds`. Contiguous or channels-last memory is read as it lies; an input laid
            out otherwise than the result costs one copy.
        eps: radius in pixel units, the sum over a sample's entries; float, or tensor [] or [B] of the images' dtype.
        bounds: lowest and highest pixel value.
        out: written instead of a new tensor; may be `x_adv` itself.

    Returns:
        `out`, or a new tensor like `x_adv`. It never requires a gradient.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape, device or range; an expanded `out`. Values of tensors are not looked at (that would
            synchronise).
    """
    _check(x_adv, x, bounds, out)
    eps = radius("l1_projection", eps, x, "l1", bounds)
    if out is None:
        out = torch.empty_like(x_adv)
    select("l1_projection", x.device)(x_adv, x, eps, *bounds, out=out)
    return out


def _check(x_adv: Tensor, x: Tensor, bounds: tuple[float, float], out: Tensor | None) -> None:
    if not bounds[0] < bounds[1]:
        raise ValueError(
            f"l1_projection: bounds are {bounds}, expected (lowest, highest) with lowest < highest"
        )
    check_tensors("l1_projection", x_adv=x_adv, x=x)
    check_pixels("l1_projection", x)
    if out is not None:
        check_tensors("l1_projection", out=out)
        check_writable("l1_projection", out)
    for name, tensor in (("x_adv", x_adv), ("out", out)):
        if tensor is None:
            continue
        if tensor.shape != x.shape:
            raise ValueError(
                f"l1_projection: {name} has shape {tuple(tensor.shape)}, expected that of x, {tuple(x.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(
                f"l1_projection: {name} is on {tensor.device}, expected the device of x, {x.device}"
            )
        if tensor.dtype != x.dtype:
            raise TypeError(f"l1_projection: {name} is {tensor.dtype}, expected that of x, {x.dtype}")
    if x.dim() < 2:
        raise ValueError(
            f"l1_projection: x has shape {tuple(x.shape)}, expected [B, ...] to take the l1 norm of each sample"
        )


def _reference(x_adv: Tensor, x: Tensor, eps: Tensor, lo: float, hi: float, *, out: Tensor) -> None:
    out.copy_(reference.l1_projection(x_adv, x, eps, bounds=(lo, hi)))


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "l1_projection",
    "(Tensor x_adv, Tensor x, Tensor eps, float lo, float hi, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="l1_projection:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def images(*shape: int, dtype: torch.dtype = torch.float32, spread: float = 0.3) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.rand(shape, generator=generator, dtype=torch.float64)
        x.flatten()[::7] = 0
        x.flatten()[3::7] = 1
        x_adv = x + torch.randn(shape, generator=generator, dtype=torch.float64) * spread
        return x_adv.to(device, dtype), x.to(device, dtype)

    yield Sample("plain", images(4, 3, 8, 8), {"eps": 12.0}, exact=False)
    yield Sample("odd", images(3, 1, 7, 5), {"eps": 1.5}, exact=False)
    yield Sample("double", images(2, 3, 5, 5, dtype=torch.float64), {"eps": 2.0}, exact=False)
    yield Sample("far", images(2, 3, 9, 9, spread=50.0), {"eps": 12.0}, exact=False)
    radii = 30 * torch.linspace(0, 1, 5, device=device)
    yield Sample("per-sample", images(5, 3, 4, 4), {"eps": radii}, exact=False)
    yield Sample("inside", images(3, 3, 4, 4), {"eps": 1e3})
    yield Sample("one-entry", images(3, 1), {"eps": 0.1}, exact=False)
    yield Sample("empty", images(0, 3, 4, 4), {"eps": 12.0})
    yield Sample("large", images(2, 3, 41, 41), {"eps": 12.0}, exact=False)


OPS["l1_projection"] = Op("l1_projection", l1_projection, _samples, ("l1_projection",))
