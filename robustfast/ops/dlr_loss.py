"""`dlr_loss`: the difference of logits ratio that APGD climbs, untargeted and targeted, without a sort."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_labelled
from robustfast.reference import dlr_loss as reference

__all__ = ["dlr_loss"]


def dlr_loss(logits: Tensor, y: Tensor, *, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio of each sample, which neither shifts nor scales of the logits change.

    Croce and Hein 2020 (arXiv:2003.01690), equation 6, and equation 7 with `target`:

        -(z_y - max_{j != y} z_j) / (z_(1) - z_(3)),        -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)

    where z_(i) is the i-th largest logit; 1e-12 is added to the denominators, as in the authors' code. Both are to be
    climbed, the second one towards the class t. Logits that are all equal give 0.

    One pass over the logits forward and one backward; no sort, and the same bits as the authors' form. The gradient is
    what autograd makes of that form: at the classes of the numerator, and at those of the denominator. Where logits
    tie, the authors' sort leaves to chance which of the tied classes gets it; here the lower class counts as the larger
    logit, as `torch.max` on a CPU and a stable sort have it. A nan is the largest logit, and makes the loss nan. There
    is no second derivative.

    Args:
        logits: [B, K], any strides, any floating dtype; half precision counts in float32, and its gradient is rounded
            once. K >= 3, with a target K >= 4.
        y: labels int64 [B].
        target: classes int64 [B], each another than the label.

    Returns:
        [B], float32, or float64 for float64 logits. A label or target outside 0..K-1 makes loss and gradient of its
        sample nan, on every device: looking at it would wait for a GPU.

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong shape or device, or too few classes: use loss 'margin' for these.
    """
    check_labelled("dlr_loss", logits, y, target)
    needed, place = (3, "third logit") if target is None else (4, "mean of the third and fourth logit")
    if logits.shape[1] < needed:
        raise ValueError(
            f"dlr_loss: {'logits' if target is None else 'logits with a target'} have shape {tuple(logits.shape)}, "
            f"expected [B, K] with K >= {needed}: the loss divides by the gap to the {place}; use loss 'margin'"
        )
    return select("dlr_loss", logits.device)(logits, y, target)


def _reference(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    return reference.dlr_loss(logits, y, target)


def _reference_backward(grad: Tensor, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    return reference.dlr_loss_backward(grad, logits, y, target)


def _fake(logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))


def _fake_backward(grad: Tensor, logits: Tensor, *rest: object) -> Tensor:
    return logits.new_empty(logits.shape)


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return library.dlr_loss_backward(grad, *ctx.saved_tensors), None, None

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("dlr_loss has no second derivative; the same formula over logits.sort(1) has")

    return lambda ctx, inputs, output: None, backward


_ARGUMENTS = "Tensor logits, Tensor y, Tensor? target"

register(
    "dlr_loss",
    f"({_ARGUMENTS}) -> Tensor",
    reference=_reference,
    fake=_fake,
    triton="dlr_loss:launch",
    gradient=_gradient,
)
register(
    "dlr_loss_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
    triton="dlr_loss:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def call(
        label: str, B: int, K: int, dtype: torch.dtype = torch.float32, targeted: bool = False
    ) -> Sample:
        generator = torch.Generator().manual_seed(B + K)
        # Quarters: many classes tie.
        logits = (torch.randn(B, K, generator=generator, dtype=torch.float64) * 12).round() / 4
        y, target = torch.randint(K, (2, B), generator=generator).to(device)
        return Sample(
            label, (logits.to(device, dtype).requires_grad_(), y), {"target": target} if targeted else {}
        )

    yield call("ten-classes", 16, 10)
    yield call("targeted", 16, 10, targeted=True)
    yield call("three-classes", 6, 3)
    yield call("four-classes", 6, 4, targeted=True)
    yield call("many-classes", 9, 1000)
    yield call("many-classes-targeted", 9, 1000, targeted=True)
    yield call("odd", 3, 77, targeted=True)
    yield call("double", 6, 11, torch.float64, targeted=True)
    yield call("bf16", 17, 10, torch.bfloat16)
    yield call("fp16", 17, 33, torch.float16, targeted=True)
    yield call("empty", 0, 10)


OPS["dlr_loss"] = Op("dlr_loss", dlr_loss, _samples, ("dlr_loss", "dlr_loss_backward"))
