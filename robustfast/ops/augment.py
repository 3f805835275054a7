"""`augment`: a batch out of a store of images, cropped, mirrored and scaled in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_tensors, check_writable
from robustfast.reference import augment as reference

__all__ = ["augment"]

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8)
FORMATS = (torch.contiguous_format, torch.channels_last)


def augment(
    images: Tensor,
    *,
    seed: int,
    index: Tensor,
    pad: int = 4,
    flip: bool = True,
    scale: float = 255.0,
    out_dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    out: Tensor | None = None,
) -> Tensor:
    """The images numbered by `index`, cropped at random, mirrored at random and divided by `scale`.

    The crop of the papers reproduced here: a window of H x W pixels at a uniform place in the image with `pad` pixels
    of border on each side, then, for half of the images, mirrored left to right.

    The draws are a pure function of seed and image number: the same for any batch split, order, layout, device and
    backend, and no generator is read or moved. They come from Philox 4x32-10 (Salmon et al. 2011). The key is the seed,
    low word first, the counter (number, 0, 0, 0). Of the four words w the window starts in row
    ``w[0] * (2 * pad + 1) >> 32`` and column ``w[1] * (2 * pad + 1) >> 32``, and the image is mirrored where
    ``w[2] >= 2**31``.

    A value is the rounded quotient of pixel and scale, bit-equal on all backends: in float64 for float64, in float32
    for float32, and for bfloat16 that float32 rounded once more. uint8 pixels are passed on as they are.

    Args:
        images: the store, uint8 [N, C, H + 2 * pad, W + 2 * pad], N <= 2**32: padded once, as a rule with zeros. Any
            layout is read as it lies, without a copy; contiguous and channels-last are the fast ones.
        seed: 0 <= seed < 2**63, for example from `robustfast.seeds.derive`.
        index: int64 [B], numbers of images, on the device of `images`. Each must be in 0..N - 1.
        pad: border of the store, in pixels; 0 crops nothing.
        flip: whether to mirror at random.
        scale: the pixel value that becomes 1, in [1e-30, 1e30].
        out_dtype: float32, bfloat16, float64 or uint8.
        memory_format: of a new result, contiguous_format or channels_last, whatever the layout of `images`.
        out: written instead of a new tensor, in the layout that it has; of `out_dtype`, and apart from `images`.

    Returns:
        `out`, or a new tensor [B, C, H, W]. It never requires a gradient.

    Raises:
        TypeError: no tensor, a wrong dtype, or a seed, pad or flip of another type.
        ValueError: a wrong shape, device or range; an expanded `out`.
        IndexError: on the CPU, a number in `index` that is not in 0..N - 1. On CUDA the numbers are not looked at from
            the host (that would synchronise): there a device-side assertion fails, as it does for torch's own indexing.
    """
    _check(images, seed, index, pad, flip, scale, out_dtype, memory_format, out)
    if out is None:
        size = _size(images, index, pad)
        out = torch.empty(size, dtype=out_dtype, device=images.device, memory_format=memory_format)
    select("augment", images.device)(images, index, seed, pad, flip, float(scale), out=out)
    return out


def _size(images: Tensor, index: Tensor, pad: int) -> tuple[int, int, int, int]:
    _, channels, height, width = images.shape
    return index.shape[0], channels, height - 2 * pad, width - 2 * pad


def _check(
    images: Tensor,
    seed: int,
    index: Tensor,
    pad: int,
    flip: bool,
    scale: float,
    out_dtype: torch.dtype,
    memory_format: torch.memory_format,
    out: Tensor | None,
) -> None:
    check_tensors("augment", images=images, index=index)
    if images.dtype != torch.uint8:
        raise TypeError(f"augment: images is {images.dtype}, expected torch.uint8")
    if images.dim() != 4:
        raise ValueError(f"augment: images has shape {tuple(images.shape)}, expected [N, C, H, W]")
    if images.shape[0] > 2**32:
        raise ValueError(f"augment: images has {images.shape[0]} rows, expected at most 2**32")
    if math.prod(images.shape[1:]) > 2**30:
        raise ValueError(
            f"augment: one of images {tuple(images.shape)} has more than 2**30 elements, expected fewer"
        )
    for name, value in (("seed", seed), ("pad", pad)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"augment: {name} is a {type(value).__name__}, expected an int")
    if not 0 <= seed <= 2**63 - 1:
        raise ValueError(f"augment: seed is {seed}, expected an int in [0, 2**63)")
    if pad < 0:
        raise ValueError(f"augment: pad is {pad}, expected an int >= 0")
    if min(images.shape[2:]) <= 2 * pad:
        raise ValueError(
            f"augment: images of shape {tuple(images.shape)} have nothing inside a border of pad={pad} pixels, "
            f"expected [N, C, H + {2 * pad}, W + {2 * pad}]"
        )
    if not isinstance(flip, bool):
        raise TypeError(f"augment: flip is a {type(flip).__name__}, expected a bool")
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"augment: scale is a {type(scale).__name__}, expected a number")
    if not 1e-30 <= scale <= 1e30:
        raise ValueError(f"augment: scale is {scale}, expected a number in [1e-30, 1e30]")
    if out_dtype not in DTYPES:
        raise TypeError(
            f"augment: out_dtype is {out_dtype}, expected one of {', '.join(str(dtype) for dtype in DTYPES)}"
        )
    if memory_format not in FORMATS:
        raise ValueError(
            f"augment: memory_format is {memory_format}, expected torch.contiguous_format or torch.channels_last"
        )
    if index.dtype != torch.int64:
        raise TypeError(f"augment: index is {index.dtype}, expected torch.int64")
    if index.dim() != 1:
        raise ValueError(f"augment: index has shape {tuple(index.shape)}, expected [B]")
    if index.device != images.device:
        raise ValueError(
            f"augment: index is on {index.device}, expected the device of images, {images.device}"
        )
    if out is not None:
        check_tensors("augment", out=out)
        check_writable("augment", out)
        if tuple(out.shape) != _size(images, index, pad):
            raise ValueError(
                f"augment: out has shape {tuple(out.shape)}, expected {_size(images, index, pad)}"
            )
        if out.device != images.device:
            raise ValueError(
                f"augment: out is on {out.device}, expected the device of images, {images.device}"
            )
        if out.dtype != out_dtype:
            raise TypeError(f"augment: out is {out.dtype}, expected out_dtype, {out_dtype}")


def _reference(
    images: Tensor, index: Tensor, seed: int, pad: int, flip: bool, scale: float, *, out: Tensor
) -> None:
    reference.check_numbers(index, images.shape[0])
    out.copy_(reference.augment(images, index, seed=seed, pad=pad, flip=flip, scale=scale, dtype=out.dtype))


def _fake(*args: object, out: Tensor) -> None:
    return None


register(
    "augment",
    "(Tensor images, Tensor index, SymInt seed, int pad, bool flip, float scale, *, Tensor(a!) out) -> ()",
    reference=_reference,
    fake=_fake,
    triton="augment:launch",
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def store(*shape: int, last: bool = False) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(sum(shape))
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)
        return (images.contiguous(memory_format=FORMATS[last]),)

    seed = 0x1234567_89ABCDEF
    index = torch.tensor([5, 0, 6, 3, 1, 5, 2, 4], device=device)
    rule = {"seed": seed, "index": index}
    yield Sample("crop-flip", store(7, 3, 16, 16), rule)
    yield Sample("crop", store(7, 3, 16, 16), {**rule, "flip": False})
    yield Sample("flip", store(7, 3, 8, 8), {**rule, "pad": 0})
    yield Sample("whole", store(7, 3, 8, 8), {**rule, "pad": 0, "flip": False})
    for last_in in (False, True):
        for last_out in (False, True):
            layouts = {"memory_format": FORMATS[last_out]}
            name = f"{'last' if last_in else 'planes'}-to-{'last' if last_out else 'planes'}"
            for dtype in DTYPES:
                kind = str(dtype).removeprefix("torch.")
                yield Sample(
                    f"{name}-{kind}",
                    store(7, 3, 16, 16, last=last_in),
                    {**rule, **layouts, "out_dtype": dtype},
                )
            for channels in (1, 2, 4):
                yield Sample(
                    f"{name}-{channels}",
                    store(7, channels, 11, 13, last=last_in),
                    {**rule, **layouts, "pad": 2},
                )
            yield Sample(
                f"{name}-odd", store(7, 3, 15, 13, last=last_in), {**rule, **layouts, "pad": 3, "scale": 16.0}
            )
    yield Sample("large", store(7, 3, 49, 47), rule)
    yield Sample("thin", store(7, 3, 9, 9), rule)
    yield Sample("empty", store(7, 3, 16, 16), {**rule, "index": index[:0]})
    yield Sample("no-channels", store(7, 0, 16, 16), rule)


OPS["augment"] = Op("augment", augment, _samples, ("augment",))
