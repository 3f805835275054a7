"""`margin_loss`: how far another class's logit lies above the label's, for each sample, without a sort."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_labelled
from robustfast.reference import margin_loss as reference

__all__ = ["margin_loss"]


def margin_loss(
    logits: Tensor, y: Tensor, *, target: Tensor | None = None, kappa: float = math.inf
) -> Tensor:
    """Margin of each sample, positive exactly where it is misclassified, cut off at `kappa`.

    min(max_{j != y} z_j - z_y, kappa), for attacks that climb away from the label y: the loss of Carlini and Wagner
    2017 (arXiv:1608.04644, section V.A, f_6), as PGD and SPSA climb it. With `target` it is min(z_target - z_y, kappa),
    which climbs from y to one class. Their own targeted form, max(max_{j != t} z_j - z_t, -kappa) with the wanted class
    t, is to be descended: this one with y = t, without its lower end.

    One pass over the logits forward and one backward. The gradient is 1 at the other class and -1 at y, bit for bit
    what autograd makes of the plain form; nothing where the margin exceeds kappa. Among equal largest logits the lowest
    class gets it, as from `torch.max` on a CPU. A nan is the largest logit, as for `torch.max`, so that the loss of
    such a sample is nan. There is no second derivative.

    Args:
        logits: [B, K], K >= 2, any strides, any floating dtype; half precision counts in float32, and its gradient is
            rounded once.
        y: labels int64 [B].
        target: classes int64 [B].
        kappa: largest value that is told apart.

    Returns:
        [B], float32, or float64 for float64 logits. A label or target outside 0..K-1 makes loss and gradient of its
        sample nan, on every device: looking at it would wait for a GPU.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape or device, fewer than two classes, or a kappa that is nan.
    """
    check_labelled("margin_loss", logits, y, target)
    if logits.shape[1] < 2:
        raise ValueError(f"margin_loss: logits have shape {tuple(logits.shape)}, expected [B, K] with K >= 2")
    if kappa != kappa:
        raise ValueError("margin_loss: kappa is nan, expected a number")
    return select("margin_loss", logits.device)(logits, y, target, kappa)


def _reference(logits: Tensor, y: Tensor, target: Tensor | None, kappa: float) -> Tensor:
    return reference.margin_loss(logits, y, target, kappa)


def _reference_backward(
    grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None, kappa: float
) -> Tensor:
    return reference.margin_loss_backward(grad, logits, y, target, kappa)


def _fake(logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))


def _fake_backward(grad: Tensor, logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty(logits.shape)


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.kappa = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return library.margin_loss_backward(grad, *ctx.saved_tensors, ctx.kappa), None, None, None

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("margin_loss has no second derivative; logits.max(1) and gather have")

    return lambda ctx, inputs, output: None, backward


_ARGUMENTS = "Tensor logits, Tensor y, Tensor? target, float kappa"

register(
    "margin_loss",
    f"({_ARGUMENTS}) -> Tensor",
    reference=_reference,
    fake=_fake,
    triton="margin_loss:launch",
    gradient=_gradient,
)
register(
    "margin_loss_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
    triton="margin_loss:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def call(
        label: str, B: int, K: int, dtype: torch.dtype = torch.float32, targeted: bool = False, **more: float
    ) -> Sample:
        generator = torch.Generator().manual_seed(B + K)
        # Quarters: many classes tie.
        logits = (torch.randn(B, K, generator=generator, dtype=torch.float64) * 12).round() / 4
        y, target = torch.randint(K, (2, B), generator=generator).to(device)
        kwargs = {"target": target, **more} if targeted else more
        return Sample(label, (logits.to(device, dtype).requires_grad_(), y), kwargs)

    yield call("ten-classes", 16, 10)
    yield call("targeted", 16, 10, targeted=True)
    yield call("kappa", 33, 10, kappa=0.5)
    yield call("two-classes", 5, 2)
    yield call("three-classes", 6, 3)
    yield call("many-classes", 9, 1000)
    yield call("odd", 3, 77, targeted=True, kappa=0.0)
    yield call("double", 6, 11, torch.float64)
    yield call("bf16", 17, 10, torch.bfloat16)
    yield call("fp16", 17, 33, torch.float16)
    yield call("empty", 0, 10)


OPS["margin_loss"] = Op("margin_loss", margin_loss, _samples, ("margin_loss", "margin_loss_backward"))
