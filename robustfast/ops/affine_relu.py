"""`affine_relu`: a batch norm in eval mode, the sum before it and the ReLU behind it, in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_tensors
from robustfast.reference import affine_relu as reference

__all__ = ["affine_relu"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def affine_relu(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    keep_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = relu(scale * t + shift) for each channel, with t = x + residual.

    With running statistics batch norm is this affine map (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.1), of
    scale = weight / sqrt(var + eps) and shift = bias - mean * scale. t is rounded to the dtype of x, whether or not it
    is kept, as a network rounds the sum that it hands on; the rest runs in float32, in float64 for float64, and y is
    rounded once. NaN passes, as through `torch.relu`.

    The forward keeps one bit for each element, in the order of memory, and nothing else, and no bit where no gradient
    is asked for. The backward pass reads the gradients, the bits and `scale`, and makes grad_y * scale where y is not
    <= 0, plus the gradient of t, rounded once: the gradient of x, and of the residual too. `scale` and `shift` take
    none. There is no second derivative.

    Args:
        x: [B, C, ...], float32, float64, bfloat16 or float16. Contiguous or channels-last memory is read as it lies;
            other strides cost a copy to contiguous memory.
        scale: [C], float32, or float64 for float64 x; None is 1.
        shift: [C], in the dtype that `scale` must have.
        residual: shape, dtype and device of x; one that lies otherwise than x costs a copy.
        keep_sum: return t too; needs a residual.

    Returns:
        y, or (y, t) with `keep_sum`, in the dtype of x and laid out like it.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape or device; `keep_sum` without a residual; a scale or shift that requires a gradient
            while gradients are recorded. Values of tensors are not looked at (that would synchronise).
    """
    _check(x, scale, shift, residual, keep_sum)
    needed = torch.is_grad_enabled() and (
        x.requires_grad or (residual is not None and residual.requires_grad)
    )
    y, t, _ = select("affine_relu", x.device)(x, residual, scale, shift, keep_sum, needed)
    return (y, t) if keep_sum else y


def _check(x: Tensor, scale: Tensor | None, shift: Tensor, residual: Tensor | None, keep_sum: bool) -> None:
    optional = {"scale": scale, "residual": residual}
    given = {"x": x, "shift": shift, **{k: v for k, v in optional.items() if v is not None}}
    check_tensors("affine_relu", **given)
    if x.dtype not in _DTYPES:
        raise TypeError(f"affine_relu: x is {x.dtype}, expected float32, float64, bfloat16 or float16")
    if x.dim() < 2:
        raise ValueError(f"affine_relu: x has shape {tuple(x.shape)}, expected [B, C, ...]")
    wide = torch.promote_types(x.dtype, torch.float32)
    for name, tensor in given.items():
        if name == "x":
            continue
        shape, dtype = (x.shape, x.dtype) if name == "residual" else (x.shape[1:2], wide)
        if tensor.shape != shape:
            raise ValueError(
                f"affine_relu: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)} for x {tuple(x.shape)}"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"affine_relu: {name} is {tensor.dtype}, expected {dtype} for x in {x.dtype}")
        if tensor.device != x.device:
            raise ValueError(
                f"affine_relu: {name} is on {tensor.device}, expected the device of x, {x.device}"
            )
        if name != "residual" and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"affine_relu: {name} requires a gradient, expected one that does not, for it would get none: "
                f"{name}.detach()"
            )
    if keep_sum and residual is None:
        raise ValueError("affine_relu: keep_sum without a residual, expected one: the sum would be x itself")


def _laid_out(x: Tensor) -> Tensor:
    """x itself where it is contiguous or channels-last, else contiguous."""
    return reference.in_order(x, reference.is_channels_last(x))


def _reference(
    x: Tensor, residual: Tensor | None, scale: Tensor | None, shift: Tensor, keep_sum: bool, keep_bits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = _laid_out(x)
    y, t = reference.affine_relu(x, scale, shift, residual)
    y = torch.empty_like(x).copy_(y)
    mask = reference.packed_bits(y) if keep_bits else x.new_empty(0, dtype=torch.uint8)
    return y, torch.empty_like(x).copy_(t) if keep_sum else x.new_empty(0), mask


def _fake(
    x: Tensor, residual: Tensor | None, scale: Tensor | None, shift: Tensor, keep_sum: bool, keep_bits: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = _laid_out(x)
    mask = x.new_empty((x.numel() + 7) // 8 if keep_bits else 0, dtype=torch.uint8)
    return torch.empty_like(x), torch.empty_like(x) if keep_sum else x.new_empty(0), mask


def _reference_backward(
    grad_y: Tensor, grad_sum: Tensor | None, mask: Tensor, scale: Tensor | None, channels_last: bool
) -> Tensor:
    grad_y = reference.in_order(grad_y, channels_last)
    kept = reference.unpacked_bits(mask, grad_y)
    grad_x = reference.affine_relu_backward(grad_y, grad_sum, kept, scale)
    return torch.empty_like(grad_y).copy_(grad_x)


def _fake_backward(
    grad_y: Tensor, grad_sum: Tensor | None, mask: Tensor, scale: Tensor | None, channels_last: bool
) -> Tensor:
    return torch.empty_like(reference.in_order(grad_y, channels_last))


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, scale, _, keep_sum, ctx.keep_bits = inputs
        y, t, mask = output
        ctx.mark_non_differentiable(mask) if keep_sum else ctx.mark_non_differentiable(t, mask)
        ctx.set_materialize_grads(False)
        ctx.channels_last = reference.is_channels_last(y)
        ctx.save_for_backward(mask, scale)

    def backward(ctx: Any, grad_y: Tensor | None, grad_sum: Tensor | None, _: object) -> tuple[Any, ...]:
        if not ctx.keep_bits:
            raise RuntimeError("affine_relu: a gradient is asked for of a call that kept no bits for it")
        mask, scale = ctx.saved_tensors
        grad = grad_sum
        if grad_y is not None:
            grad = library.affine_relu_backward(grad_y, grad_sum, mask, scale, ctx.channels_last)
        return tuple(grad if needed else None for needed in ctx.needs_input_grad[:2]) + (None,) * 4

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "affine_relu has no second derivative; robustfast.reference.affine_relu, plain PyTorch, has"
        )

    return lambda ctx, inputs, output: None, backward


register(
    "affine_relu",
    "(Tensor x, Tensor? residual, Tensor? scale, Tensor shift, bool keep_sum, bool keep_bits)"
    " -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    triton="affine_relu:launch",
    gradient=_gradient,
)
register(
    "affine_relu_backward",
    "(Tensor grad_y, Tensor? grad_sum, Tensor mask, Tensor? scale, bool channels_last) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
    triton="affine_relu:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def call(
        label: str, *shape: int, dtype: torch.dtype = torch.float32, last: bool = False, exact: bool = True,
        scale: bool = True, residual: bool = False, keep_sum: bool = False, gradient: bool = True,
    ) -> Sample:  # fmt: skip
        generator = torch.Generator().manual_seed(sum(shape))

        def image() -> Tensor:
            t = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            return reference.in_order(t, last)

        wide = torch.promote_types(dtype, torch.float32)
        channels = torch.randn(2, shape[1], generator=generator, dtype=torch.float64).to(device, wide)
        rule = {"scale": channels[0] if scale else None, "shift": channels[1]}
        if residual:
            rule |= {"residual": image(), "keep_sum": keep_sum}
        return Sample(label, (image().requires_grad_(gradient),), rule, exact)

    yield call("residual-sum", 4, 8, 4, 4, residual=True, keep_sum=True)
    yield call("plain", 4, 16, 4, 4)
    yield call("channels-last", 4, 16, 4, 4, last=True)
    yield call("channels-last-residual", 3, 40, 5, 3, last=True, residual=True)
    yield call("channels-last-sum", 3, 24, 3, 3, last=True, residual=True, keep_sum=True)
    yield call("no-scale", 4, 8, 4, 4, scale=False)
    yield call("odd", 3, 5, 7, 5, residual=True)
    yield call("odd-channels-last", 3, 5, 7, 5, last=True, residual=True, keep_sum=True)
    yield call("four-channels", 3, 4, 3, 1, last=True)
    yield call("rows", 5, 13)
    yield call("signal", 2, 6, 9, last=True, residual=True)
    yield call("volume", 2, 3, 2, 2, 4)
    yield call("no-gradient", 2, 8, 3, 3, residual=True, gradient=False)
    yield call("double", 2, 6, 3, 4, dtype=torch.float64, residual=True, keep_sum=True)
    yield call("double-channels-last", 2, 6, 3, 3, dtype=torch.float64, last=True)
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds.
    yield call("bf16", 4, 8, 5, 5, dtype=torch.bfloat16, last=True, residual=True, keep_sum=True, exact=False)
    yield call("bf16-contiguous", 4, 6, 4, 4, dtype=torch.bfloat16, residual=True, exact=False)
    yield call("fp16", 4, 16, 4, 4, dtype=torch.float16, last=True, residual=True)
    yield call("large", 2, 64, 33, 32, last=True, residual=True)
    yield call("large-contiguous", 2, 64, 33, 32, residual=True, keep_sum=True)
    yield call("empty", 0, 8, 4, 4)


OPS["affine_relu"] = Op("affine_relu", affine_relu, _samples, ("affine_relu", "affine_relu_backward"))
