"""`three_way_head`: the head of the three-way model, read in three ways for the price of two half products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_tensors
from robustfast.reference import three_way_head as reference

__all__ = ["three_way_head"]


def three_way_head(
    z_r: Tensor, z_n: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the standard, the robust and the non-robust way: f([z_r, z_n]), f([z_r, 0]) and f([0, z_n]).

    f is Linear(2H, D), ReLU, Linear(D, C); the zeros are constants (the AAT paper, equations 4 and 5, where D = H). The
    two half products of the first layer are computed once and shared by the ways, which is a third of the arithmetic of
    three passes, and one product over the stacked ways makes the logits: 3 products instead of 6.

    The products are PyTorch's own; the kernel fuses what lies between them. So autograd makes exactly the products that
    are asked for: ``torch.autograd.grad(loss, z)``, as in an attack, makes no weight gradient, whether or not the
    weights require one. `h_r` sends no gradient to `z_n`, and `h_n` none to `z_r`. There is no second derivative.

    Precision: under autocast the products run in its dtype, as those of `torch.nn.Linear` do; the half products and
    `b1` are added in float32 and rounded once. The same holds when everything is given in bfloat16 or float16.

    Args:
        z_r, z_n: representations [B, H], floating.
        w1, b1: weight [D, 2H] and bias [D] of the first layer; its first H columns read `z_r`.
        w2, b2: weight [C, D] and bias [C] of the second layer.

    Returns:
        (h_s, h_r, h_n), each [B, C], in the dtype of the products. They are views of one tensor.

    Raises:
        TypeError: no tensor; a dtype that is not floating, or, outside autocast, not that of `z_r`.
        ValueError: a wrong shape or device.
    """
    _check(z_r, z_n, w1, b1, w2, b2)
    w_r, w_n = w1.chunk(2, dim=1)
    p_r, p_n = F.linear(z_r, w_r), F.linear(z_n, w_n)
    b1 = b1.to(torch.promote_types(p_r.dtype, torch.float32))
    hidden = select("three_way_head", p_r.device)(p_r, p_n, b1)
    h_s, h_r, h_n = F.linear(hidden, w2, b2).chunk(3)
    return h_s, h_r, h_n


def _check(z_r: Tensor, z_n: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    check_tensors("three_way_head", z_r=z_r, z_n=z_n, w1=w1, b1=b1, w2=w2, b2=b2)
    if z_r.dim() != 2:
        raise ValueError(f"three_way_head: z_r has shape {tuple(z_r.shape)}, expected [B, H]")
    if w1.dim() != 2 or w2.dim() != 2:
        raise ValueError(
            f"three_way_head: w1 and w2 have shapes {tuple(w1.shape)} and {tuple(w2.shape)}, "
            f"expected [D, 2H] and [C, D]"
        )
    (B, H), D, C = z_r.shape, w1.shape[0], w2.shape[0]
    autocast = torch.is_autocast_enabled(z_r.device.type) and z_r.dtype != torch.float64
    expected = {"z_n": (B, H), "w1": (D, 2 * H), "b1": (D,), "w2": (C, D), "b2": (C,)}
    for (name, shape), tensor in zip(expected.items(), (z_n, w1, b1, w2, b2), strict=True):
        if tensor.shape != shape:
            raise ValueError(
                f"three_way_head: {name} has shape {tuple(tensor.shape)}, expected {shape} for z_r {tuple(z_r.shape)}, "
                f"w1 {tuple(w1.shape)} and w2 {tuple(w2.shape)}"
            )
        if tensor.device != z_r.device:
            raise ValueError(
                f"three_way_head: {name} is on {tensor.device}, expected the device of z_r, {z_r.device}"
            )
        if tensor.dtype != z_r.dtype and not (
            autocast and tensor.dtype.is_floating_point and tensor.dtype != torch.float64
        ):
            raise TypeError(f"three_way_head: {name} is {tensor.dtype}, expected that of z_r, {z_r.dtype}")
    if not z_r.dtype.is_floating_point:
        raise TypeError(f"three_way_head: z_r is {z_r.dtype}, expected a floating dtype")


def _fake(p_r: Tensor, p_n: Tensor, b1: Tensor) -> Tensor:
    return p_r.new_empty(3 * p_r.shape[0], p_r.shape[1])


def _fake_backward(d_hidden: Tensor, hidden: Tensor, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = hidden.shape[0] // 3, hidden.shape[1]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return (
        hidden.new_empty(shape),
        hidden.new_empty(shape),
        hidden.new_empty(shape[1] if bias else 0, dtype=dtype),
    )


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        bias = ctx.needs_input_grad[2]
        d_r, d_n, d_b1 = library.three_way_head_backward(d_hidden, hidden, bias)
        return d_r, d_n, d_b1 if bias else None

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "three_way_head has no second derivative; robustfast.reference.three_way_head, plain PyTorch, has"
        )

    return lambda ctx, inputs, output: None, backward


register(
    "three_way_head",
    "(Tensor p_r, Tensor p_n, Tensor b1) -> Tensor",
    reference=reference.three_way_hidden,
    fake=_fake,
    triton="three_way_head:launch",
    gradient=_gradient,
)
register(
    "three_way_head_backward",
    "(Tensor d_hidden, Tensor hidden, bool bias) -> (Tensor, Tensor, Tensor)",
    reference=reference.three_way_hidden_backward,
    fake=_fake_backward,
    triton="three_way_head:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def inputs(B: int, H: int, D: int, C: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(B + H)
        shapes = (B, H), (B, H), (D, 2 * H), (D,), (C, D), (C,)
        values = [torch.randn(shape, generator=generator, dtype=torch.float64) / 2 for shape in shapes]
        return tuple(value.to(device, dtype).requires_grad_() for value in values)

    yield Sample("small", inputs(6, 8, 8, 3))
    yield Sample("odd", inputs(5, 7, 13, 3))
    yield Sample("one-sample", inputs(1, 16, 16, 10))
    yield Sample("empty", inputs(0, 8, 8, 3))
    yield Sample("paper", inputs(32, 200, 200, 10))
    yield Sample("double", inputs(4, 9, 9, 3, torch.float64))
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds.
    yield Sample("bf16", inputs(6, 24, 24, 5, torch.bfloat16), exact=False)
    yield Sample("fp16", inputs(6, 24, 24, 5, torch.float16))


OPS["three_way_head"] = Op(
    "three_way_head", three_way_head, _samples, ("three_way_head", "three_way_head_backward")
)
