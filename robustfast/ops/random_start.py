"""`random_start`: where an attack begins, drawn from a counter instead of a generator's state."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.pgd_step import NORMS
from robustfast.ops.sizes import radius
from robustfast.ops.tensors import check_pixels, check_tensors, check_writable
from robustfast.reference import random_start as reference

__all__ = ["random_start"]

LAWS = ("ball", "pixel")
_KERNELS = ("pixel", "l2", "l1")


def random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int,
    index: Tensor | None = None,
    law: str = "ball",
    out: Tensor | None = None,
) -> Tensor:
    """A random point in the eps-ball around each sample, clipped to `bounds`.

    The laws:

    * ``"ball"``: uniform in the ball of `norm`. Under "l2" and "l1" that is a draw g of density ~ exp(-|t|^p) in each
      element, divided by (sum |g|^p + e)^(1/p) with e exponential (Barthe, Guedon, Mendelson, Naor 2005, theorem 1).
      Foolbox starts so, and so do the l2 attacks of CD-VAE.
    * ``"pixel"``: U[-eps, eps) in each element, whatever `norm` is. YOPO (Zhang et al. 2019) starts so, whose attacks
      the AAT paper uses. Under "l2" and "l1" it lies outside the ball, into which the first step projects it.

    Under "linf" both are the same. Clipping never leaves a ball around an `x` inside `bounds`.

    The draws are a pure function of seed, sample index and element: the same for any batch split, memory format, device
    and backend, and no generator is read or moved. They come from Philox 4x32-10 (Salmon et al. 2011). The key is the
    seed, low word first. Let e be the element's position in its sample, in row-major order of the logical shape
    (channels first): the counter is (e // 4, purpose, low and high word of the index), and the element takes word
    e % 4. Purpose is 0 for "pixel", 1 for directions, 2 for the radius. "pixel" keeps 24 bits of a word, so float32 and
    float64 images get the same draws, bit-equal on all backends. Balls are drawn in float64 and rounded once; backends
    differ by the order of one sum.

    Args:
        x: images [B, ...], float32 or float64. Contiguous or channels-last memory is read as it lies; an input laid out
            otherwise, or otherwise than `out`, costs one copy.
        eps: radius in pixel units; float, or tensor [] or [B] of the images' dtype.
        norm: "linf", "l2" or "l1".
        bounds: lowest and highest pixel value.
        seed: 0 <= seed < 2**63, for example from `robustfast.seeds.derive`.
        index: int64 [B], each sample's number in the data set; None numbers the batch from 0.
        law: "ball" or "pixel".
        out: written instead of a new tensor; may be `x` itself.

    Returns:
        `out`, or a new tensor like `x`. It never requires a gradient.

    Raises:
        TypeError: no tensor, a wrong dtype, or a seed that is no int.
        ValueError: a wrong shape, device, name or range; an expanded `out`. Values of tensors are not looked
            at (that would synchronise).
    """
    _check(x, norm, law, bounds, seed, index, out)
    eps = radius("random_start", eps, x, norm, bounds)
    if out is None:
        out = torch.empty_like(x)
    kernel = "pixel" if law == "pixel" or norm == "linf" else norm
    select("random_start", x.device)(x, eps, _KERNELS.index(kernel), seed, index, *bounds, out=out)
    return out


def _check(
    x: Tensor,
    norm: str,
    law: str,
    bounds: tuple[float, float],
    seed: int,
    index: Tensor | None,
    out: Tensor | None,
) -> None:
    check_tensors("random_start", x=x)
    check_pixels("random_start", x)
    if x.dim() < 1:
        raise ValueError("random_start: x has shape (), expected [B, ...]")
    if math.prod(x.shape[1:]) > 2**30:
        raise ValueError(
            f"random_start: a sample of x {tuple(x.shape)} has more than 2**30 elements, expected fewer"
        )
    if norm not in NORMS:
        raise ValueError(f"random_start: norm is {norm!r}, expected one of {', '.join(NORMS)}")
    if law not in LAWS:
        raise ValueError(f"random_start: law is {law!r}, expected one of {', '.join(LAWS)}")
    if not bounds[0] < bounds[1]:
        raise ValueError(
            f"random_start: bounds are {bounds}, expected (lowest, highest) with lowest < highest"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"random_start: seed is a {type(seed).__name__}, expected an int in [0, 2**63)")
    if not 0 <= seed <= 2**63 - 1:
        raise ValueError(f"random_start: seed is {seed}, expected an int in [0, 2**63)")
    if index is not None:
        check_tensors("random_start", index=index)
        if index.dtype != torch.int64:
            raise TypeError(f"random_start: index is {index.dtype}, expected torch.int64")
        if index.shape != x.shape[:1]:
            raise ValueError(f"random_start: index has shape {tuple(index.shape)}, expected ({x.shape[0]},)")
        if index.device != x.device:
            raise ValueError(
                f"random_start: index is on {index.device}, expected the device of x, {x.device}"
            )
    if out is not None:
        check_tensors("random_start", out=out)
        check_writable("random_start", out)
        if out.shape != x.shape:
            raise ValueError(
                f"random_start: out has shape {tuple(out.shape)}, expected that of x, {tuple(x.shape)}"
            )
        if out.device != x.device:
            raise ValueError(f"random_start: out is on {out.device}, expected the device of x, {x.device}")
        if out.dtype != x.dtype:
            raise TypeError(f"random_start: out is {out.dtype}, expected that of x, {x.dtype}")


def _reference(
    x: Tensor, eps: Tensor, law: int, seed: int, index: Tensor | None, lo: float, hi: float, *, out: Tensor
) -> None:
    if index is None:
        index = torch.arange(len(x), device=x.device)
    out.copy_(
        reference.random_start(x, eps.to(x.device), index, law=_KERNELS[law], seed=seed, bounds=(lo, hi))
    )


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "random_start",
    "(Tensor x, Tensor eps, int law, SymInt seed, Tensor? index, float lo, float hi, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="random_start:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def images(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape))
        return (torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype),)

    seed = 0x1234567_89ABCDEF
    for norm, law, eps in (
        ("linf", "ball", 8 / 255),
        ("l2", "ball", 0.5),
        ("l1", "ball", 12.0),
        ("l2", "pixel", 0.3),
    ):
        rule = {"norm": norm, "law": law, "eps": eps, "seed": seed}
        exact = norm == "linf" or law == "pixel"
        name = norm if law == "ball" else f"{norm}-{law}"
        index = torch.tensor([5, 2**40 + 1, 0, 7], device=device)
        yield Sample(name, images(4, 3, 8, 8), {**rule, "index": index}, exact)
        yield Sample(f"{name}-unnumbered", images(4, 3, 8, 8), rule, exact)
        yield Sample(f"{name}-odd", images(3, 3, 7, 5), rule, exact)
        yield Sample(
            f"{name}-channels-last",
            (images(3, 3, 8, 6)[0].to(memory_format=torch.channels_last),),
            rule,
            exact,
        )
        yield Sample(f"{name}-double", images(2, 3, 5, 5, dtype=torch.float64), rule, exact)
        radii = eps * torch.linspace(0, 1, 5, device=device)
        yield Sample(f"{name}-per-sample", images(5, 3, 4, 4), {**rule, "eps": radii}, exact)
        yield Sample(f"{name}-flat", images(6), rule, exact)
        yield Sample(f"{name}-empty", images(0, 3, 4, 4), rule, exact)
        yield Sample(f"{name}-large", images(2, 3, 41, 41), rule, exact)


OPS["random_start"] = Op("random_start", random_start, _samples, ("random_start",))
