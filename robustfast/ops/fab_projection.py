"""`fab_projection`: the smallest step onto a hyperplane within the box, all samples and no sort in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import fab_projection as reference

__all__ = ["fab_projection"]

NORMS = ("linf", "l2", "l1")


def fab_projection(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    out: Tensor | None = None,
) -> Tensor:
    """The smallest step d, in `norm`, with ``<w, x + d> = b`` and ``x + d`` in `bounds`; per sample.

    Equation 5 of Croce and Hein 2020 (arXiv:1907.02044): the projection that FAB repeats onto the linearised decision
    boundary. Where the box does not reach the hyperplane, d goes as near to it as the box lets: to a corner.

    With gap = <w, x> - b, and the room of entry i its way to the wall that narrows the gap, entry i moves by

    * linf: min(m, room_i);
    * l2: min(m * |w_i|, room_i);
    * l1: all its room where |w_i| is above a threshold, none below it,

    with the one number m, or threshold, per sample that closes the gap. The authors' code sorts each sample to find
    it; here m comes from Newton's iteration, which ends exactly since the entries at a wall only grow in number, and
    the threshold from a selection by digits. Sums run in float64. Differences to that code: it takes |w| <= 1e-8 for
    zero under l2 and l1, where here the result does not depend on the scale of w; and entries that tie with the l1
    threshold share the rest of the gap in proportion to their room instead of one after the other, so that the order
    in which pixels lie in memory does not matter (the norm of d is the same).

    Nothing makes NaN: where w is zero, or w or b hold a nan or an infinity, d is zero. An entry that w does not hold
    up (w_i = 0) stays. An x outside `bounds` counts as on the wall.

    Args:
        x: points [M * B, ...], float32 or float64. Contiguous or channels-last memory is read as it lies; an input laid
            out otherwise than the result costs one copy.
        w: normals [B, ...], dtype of x. With M > 1 row i of x meets hyperplane i % B: FAB projects both its iterate and
            the original image onto each hyperplane.
        b: offsets [B], dtype of x.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
        out: written instead of a new tensor; may be `x` itself.

    Returns:
        `out`, or a new tensor like `x`: the steps d, not the points. It never requires a gradient.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape, device, name or range; an expanded `out`. Values of tensors are not looked at (that
            would synchronise).
    """
    _check(x, w, b, norm, bounds, out)
    if out is None:
        out = torch.empty_like(x)
    select("fab_projection", x.device)(x, w, b, NORMS.index(norm), *map(float, bounds), out=out)
    return out


def _check(
    x: Tensor, w: Tensor, b: Tensor, norm: str, bounds: tuple[float, float], out: Tensor | None
) -> None:
    check_tensors("fab_projection", x=x, w=w, b=b)
    check_pixels("fab_projection", x)
    if out is not None:
        check_tensors("fab_projection", out=out)
        check_writable("fab_projection", out)
    if norm not in NORMS:
        raise ValueError(f"fab_projection: norm is {norm!r}, expected one of {', '.join(NORMS)}")
    if not bounds[0] < bounds[1]:
        raise ValueError(
            f"fab_projection: bounds are {bounds}, expected (lowest, highest) with lowest < highest"
        )
    if x.dim() < 2:
        raise ValueError(f"fab_projection: x has shape {tuple(x.shape)}, expected [B, ...]")
    if w.shape[1:] != x.shape[1:] or (len(x) % len(w) if len(w) else len(x)):
        raise ValueError(
            f"fab_projection: w has shape {tuple(w.shape)}, expected that of x, {tuple(x.shape)}, "
            f"or a whole fraction of its rows"
        )
    if b.shape != w.shape[:1]:
        raise ValueError(f"fab_projection: b has shape {tuple(b.shape)}, expected ({len(w)},)")
    if out is not None and out.shape != x.shape:
        raise ValueError(
            f"fab_projection: out has shape {tuple(out.shape)}, expected that of x, {tuple(x.shape)}"
        )
    for name, tensor in (("w", w), ("b", b), ("out", out)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(
                f"fab_projection: {name} is on {tensor.device}, expected the device of x, {x.device}"
            )
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(f"fab_projection: {name} is {tensor.dtype}, expected that of x, {x.dtype}")


def _reference(x: Tensor, w: Tensor, b: Tensor, norm: int, lo: float, hi: float, *, out: Tensor) -> None:
    out.copy_(reference.fab_projection(x, w, b, norm=NORMS[norm], bounds=(lo, hi)))


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "fab_projection",
    "(Tensor x, Tensor w, Tensor b, int norm, float lo, float hi, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="fab_projection:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def rows(
        *shape: int, times: int = 1, dtype: torch.dtype = torch.float32, share: float = 0.3
    ) -> tuple[Tensor, ...]:
        """Points, normals and offsets that ask for a `share` of what the box lets each point move."""
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.rand(times * shape[0], *shape[1:], generator=generator, dtype=torch.float64)
        w = torch.randn(shape, generator=generator, dtype=torch.float64)
        w.flatten()[::7] = 0
        side = torch.where(torch.arange(shape[0]) % 2 == 0, 1.0, -1.0).double()
        first = x[: shape[0]]
        turned = w * side.reshape(-1, *[1] * (w.dim() - 1))
        reach = (turned.abs() * torch.where(turned > 0, first, 1 - first)).flatten(1).sum(1)
        b = (w * first).flatten(1).sum(1) - side * share * reach
        return tuple(t.to(device, dtype) for t in (x, w, b))

    for norm in NORMS:
        rule = {"norm": norm}
        yield Sample(norm, rows(4, 3, 8, 8), rule, exact=False)
        yield Sample(f"{norm}-odd", rows(3, 1, 7, 5), rule, exact=False)
        yield Sample(f"{norm}-double", rows(2, 1, 3, 3, dtype=torch.float64), rule, exact=False)
        yield Sample(f"{norm}-twice", rows(3, 3, 4, 4, times=2), rule, exact=False)
        yield Sample(f"{norm}-near", rows(4, 3, 6, 6, share=0.01), rule, exact=False)
        yield Sample(f"{norm}-out-of-reach", rows(2, 3, 4, 4, share=1.5), rule, exact=False)
        yield Sample(f"{norm}-bounds", rows(2, 3, 4, 4), {**rule, "bounds": (-1.0, 2.0)}, exact=False)
        yield Sample(f"{norm}-vectors", rows(5, 11), rule, exact=False)
        yield Sample(f"{norm}-large", rows(2, 3, 41, 41), rule, exact=False)
        yield Sample(f"{norm}-empty", rows(0, 3, 4, 4), rule, exact=False)


OPS["fab_projection"] = Op("fab_projection", fab_projection, _samples, ("fab_projection",))
