"""`asymmetric_cross_entropy`: all terms of the AAT and AAT++ losses at once, each with its mask over the full batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.ops.backend import OPS, Op, Sample, register, select
from robustfast.ops.tensors import check_tensors
from robustfast.reference import asymmetric_cross_entropy as reference

__all__ = ["TERMS", "asymmetric_cross_entropy"]

# How a term gets its label and which samples it keeps; kernels know a rule by its place here.
_RULES = ("y", "y_where_s_fooled", "yhat_s", "yhat_n")

TERMS = {
    "st_s": "y",
    "st_r": "y",
    "st_n": "y",
    "as_r": "y_where_s_fooled",
    "as_n": "yhat_s",
    "ar": "y",
    "an": "yhat_n",
}


def asymmetric_cross_entropy(
    logits: Sequence[Tensor],
    y: Tensor,
    *,
    terms: Sequence[str],
    yhat_s: Tensor | None = None,
    yhat_n: Tensor | None = None,
) -> Tensor:
    """Cross-entropy terms of AAT and AAT++; the loss is their sum (the AAT paper, equations 6 to 11).

    ==================  ===============  ====================  ========================================
    term                logits           label                 kept where
    ==================  ===============  ====================  ========================================
    st_s, st_r, st_n    h_s, h_r, h_n    `y`                   always
    as_r                h_r(x_s)         `y`                   `yhat_s` != `y`: x_s fools the standard way
    as_n                h_n(x_s)         `yhat_s`              the same
    ar                  h_r(x_r)         `y`                   always
    an                  h_n(x_n)         `yhat_n`              `yhat_n` != `y`
    ==================  ===============  ====================  ========================================

    A term is the sum over the samples it keeps, divided by the **full** batch size: keeping nothing gives exactly 0.
    Samples that are left out have exactly zero gradient and do not show, whatever their logits hold.

    One pass over the logits forward and one backward, for all terms together. Half-precision logits count in float32;
    sums run in a fixed order without atomics, so that two runs agree bit for bit. There is no second derivative. Logits
    of a kept sample that hold NaN or +inf make that term NaN, a label's logit of -inf makes it inf, as in
    `torch.nn.functional.cross_entropy`.

    Args:
        logits: [B, C] for each term, any strides, one floating dtype.
        y: labels, int64 [B].
        terms: names, in the order of `logits`, each at most once.
        yhat_s: predictions of the standard way for x_s, int64 [B]; needed by as_r and as_n.
        yhat_n: predictions of the non-robust way for x_n, int64 [B]; needed by an.

    Returns:
        Values [len(terms)], float32 (float64 for float64 logits).

    Raises:
        TypeError: no tensor, or a wrong dtype.
        ValueError: a wrong name, shape, number or device, or predictions that a term needs and that are missing.
        RuntimeError: on the CPU, the label of a kept sample is outside 0..C-1. On a GPU, where looking would
            synchronise, that sample's loss and gradient are NaN; nothing is read out of bounds.
    """
    _check(logits, y, terms, yhat_s, yhat_n)
    rules = [_RULES.index(TERMS[term]) for term in terms]
    return select("asymmetric_cross_entropy", y.device)(list(logits), y, yhat_s, yhat_n, rules)


def _check(
    logits: Sequence[Tensor], y: Tensor, terms: Sequence[str], yhat_s: Tensor | None, yhat_n: Tensor | None
) -> None:
    name = "asymmetric_cross_entropy"
    if unknown := [term for term in terms if term not in TERMS]:
        raise ValueError(f"{name}: term {unknown[0]!r}, expected some of {', '.join(TERMS)}")
    if not terms or len(set(terms)) != len(terms):
        raise ValueError(f"{name}: terms are {tuple(terms)}, expected one or more, each once")
    if len(logits) != len(terms):
        raise ValueError(f"{name}: {len(logits)} logits for {len(terms)} terms, expected one for each")
    for term, tensor in zip(terms, logits, strict=True):
        check_tensors(name, **{f"logits of {term}": tensor})
    labels = {"y": y, "yhat_s": yhat_s, "yhat_n": yhat_n}
    check_tensors(
        name, **{label: tensor for label, tensor in labels.items() if tensor is not None or label == "y"}
    )
    first = logits[0]
    if first.dim() != 2 or 0 in first.shape:
        raise ValueError(
            f"{name}: logits have shape {tuple(first.shape)}, expected [B, C] with one or more of each"
        )
    if not first.dtype.is_floating_point:
        raise TypeError(f"{name}: logits are {first.dtype}, expected a floating dtype")
    for term, tensor in zip(terms, logits, strict=True):
        if tensor.shape != first.shape:
            raise ValueError(
                f"{name}: logits of {term} have shape {tuple(tensor.shape)}, expected that of {terms[0]}, "
                f"{tuple(first.shape)}"
            )
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{name}: logits of {term} are {tensor.dtype}, expected that of {terms[0]}, {first.dtype}"
            )
        if tensor.device != y.device:
            raise ValueError(
                f"{name}: logits of {term} are on {tensor.device}, expected the device of y, {y.device}"
            )
    for prediction, rules in (("yhat_s", ("y_where_s_fooled", "yhat_s")), ("yhat_n", ("yhat_n",))):
        asking = [term for term in terms if TERMS[term] in rules]
        if labels[prediction] is None and asking:
            raise ValueError(f"{name}: {prediction} is missing, and {', '.join(asking)} needs it")
    for label, tensor in labels.items():
        if tensor is None:
            continue
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name}: {label} is {tensor.dtype}, expected torch.int64")
        if tensor.shape != first.shape[:1]:
            raise ValueError(
                f"{name}: {label} has shape {tuple(tensor.shape)}, expected {tuple(first.shape[:1])}, one for each "
                f"sample"
            )
        if tensor.device != y.device:
            raise ValueError(f"{name}: {label} is on {tensor.device}, expected the device of y, {y.device}")


def _reference(
    logits: list[Tensor], y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None, rules: list[int]
) -> Tensor:
    return reference.asymmetric_cross_entropy(logits, y, yhat_s, yhat_n, [_RULES[rule] for rule in rules])


def _reference_backward(
    grad: Tensor,
    logits: list[Tensor],
    y: Tensor,
    yhat_s: Tensor | None,
    yhat_n: Tensor | None,
    rules: list[int],
) -> Tensor:
    names = [_RULES[rule] for rule in rules]
    return reference.asymmetric_cross_entropy_backward(grad, logits, y, yhat_s, yhat_n, names)


def _fake(
    logits: list[Tensor], y: Tensor, yhat_s: Tensor | None, yhat_n: Tensor | None, rules: list[int]
) -> Tensor:
    return y.new_empty(len(logits), dtype=torch.promote_types(logits[0].dtype, torch.float32))


def _fake_backward(grad: Tensor, logits: list[Tensor], *rest: object) -> Tensor:
    return logits[0].new_empty(len(logits), *logits[0].shape)


def _gradient(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, y, yhat_s, yhat_n, ctx.rules = inputs
        ctx.terms = len(logits)
        ctx.save_for_backward(*logits, y, yhat_s, yhat_n)

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        logits, labels = ctx.saved_tensors[: ctx.terms], ctx.saved_tensors[ctx.terms :]
        gradients = library.asymmetric_cross_entropy_backward(grad, list(logits), *labels, ctx.rules).unbind()
        return list(gradients), None, None, None, None

    return setup_context, backward


def _no_second_derivative(library: Any) -> tuple[Callable[..., None], Callable[..., Any]]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(
            "asymmetric_cross_entropy has no second derivative; torch.nn.functional.cross_entropy has"
        )

    return lambda ctx, inputs, output: None, backward


_ARGUMENTS = "Tensor[] logits, Tensor y, Tensor? yhat_s, Tensor? yhat_n, int[] rules"

register(
    "asymmetric_cross_entropy",
    f"({_ARGUMENTS}) -> Tensor",
    reference=_reference,
    fake=_fake,
    triton="asymmetric_cross_entropy:launch",
    gradient=_gradient,
)
register(
    "asymmetric_cross_entropy_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
    triton="asymmetric_cross_entropy:launch_backward",
    gradient=_no_second_derivative,
)


def _samples(device: torch.device) -> Iterator[Sample]:
    def call(
        label: str,
        B: int,
        C: int,
        terms: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
        fooled: float = 0.5,
    ) -> Sample:
        generator = torch.Generator().manual_seed(B + C)
        values = [torch.randn(B, C, generator=generator, dtype=torch.float64) * 3 for _ in terms]
        y, other = torch.randint(C, (2, B), generator=generator)
        kept = torch.rand(2, B, generator=generator) < fooled
        yhat_s, yhat_n = torch.where(
            kept, (y + 1 + other % max(1, C - 1)) % C, y
        )  # never y where kept, if C > 1
        logits = [value.to(device, dtype).requires_grad_() for value in values]
        predictions = {"yhat_s": yhat_s.to(device), "yhat_n": yhat_n.to(device)}
        return Sample(label, (logits, y.to(device)), {"terms": terms, **predictions}, exact=False)

    every = tuple(TERMS)
    yield call("aatpp", 16, 10, every)
    yield call("aat", 7, 10, every[:5])
    yield call("st", 5, 3, every[:3])
    yield call("one-term", 1, 2, ("ar",))
    yield call("one-class", 3, 1, every)
    yield call("none-kept", 9, 10, every, fooled=0.0)
    yield call("all-kept", 9, 10, every, fooled=1.0)
    yield call("many-classes", 33, 1000, every)
    yield call("double", 6, 11, every, torch.float64)
    yield call("bf16", 17, 10, every, torch.bfloat16)
    yield call("fp16", 17, 10, every, torch.float16)


OPS["asymmetric_cross_entropy"] = Op(
    "asymmetric_cross_entropy",
    asymmetric_cross_entropy,
    _samples,
    ("asymmetric_cross_entropy", "asymmetric_cross_entropy_backward"),
)
