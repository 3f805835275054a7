"""The seven terms of AAT++: term by term as people write it, with masks instead of picking, that compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import asymmetric_cross_entropy, use_backend
from robustfast.ops.asymmetric_cross_entropy import TERMS
from robustfast.ops.backend import Sample

EVERY = tuple(TERMS)
CASES = {"CIFAR-10": (128, 10), "CIFAR-100": (128, 100), "1000 classes": (128, 1000)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[..., Tensor]


def inputs(B: int, C: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Logits of the seven terms, labels, and predictions that are wrong for about half of the samples."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(B, C, generator=generator).mul(3).to(DEVICE, dtype) for _ in EVERY]
    y, other = torch.randint(C, (2, B), generator=generator)
    half = torch.arange(B) % 2 == 0
    predictions = {"yhat_s": torch.where(half, other, y), "yhat_n": torch.where(half, y, other)}
    return logits, y.to(DEVICE), {name: t.to(DEVICE) for name, t in predictions.items()}


def picking(logits: Sequence[Tensor], y: Tensor, yhat_s: Tensor, yhat_n: Tensor) -> Tensor:
    """Boolean indexing picks what each term keeps; on a GPU every one of these waits for the device."""
    st_s, st_r, st_n, as_r, as_n, ar, an = logits
    s, n = yhat_s != y, yhat_n != y
    values = [F.cross_entropy(term, y) for term in (st_s, st_r, st_n)]
    values += [F.cross_entropy(as_r[s], y[s], reduction="sum") / len(y)]
    values += [F.cross_entropy(as_n[s], yhat_s[s], reduction="sum") / len(y)]
    values += [F.cross_entropy(ar, y)]
    values += [F.cross_entropy(an[n], yhat_n[n], reduction="sum") / len(y)]
    return torch.stack(values)


def masking(logits: Sequence[Tensor], y: Tensor, yhat_s: Tensor, yhat_n: Tensor) -> Tensor:
    """The best eager form: losses of all samples, masked."""
    st_s, st_r, st_n, as_r, as_n, ar, an = logits
    s, n = yhat_s != y, yhat_n != y

    def masked(term: Tensor, label: Tensor, kept: Tensor) -> Tensor:
        return (F.cross_entropy(term.float(), label, reduction="none") * kept).sum() / len(y)

    values = [F.cross_entropy(term.float(), y) for term in (st_s, st_r, st_n)]
    values += [masked(as_r, y, s), masked(as_n, yhat_s, s)]
    values += [F.cross_entropy(ar.float(), y), masked(an, yhat_n, n)]
    return torch.stack(values)


def ours(logits: Sequence[Tensor], y: Tensor, yhat_s: Tensor, yhat_n: Tensor) -> Tensor:
    return asymmetric_cross_entropy(logits, y, terms=EVERY, yhat_s=yhat_s, yhat_n=yhat_n)


def values(loss: Loss) -> Callable[..., list[Tensor]]:
    def run(*arguments: Any, **predictions: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return [loss(*arguments, **predictions)]

    return run


def training(loss: Loss) -> Callable[..., list[Tensor]]:
    """The values and the gradient of their sum."""

    def run(logits: Sequence[Tensor], *labels: Tensor, **predictions: Tensor) -> list[Tensor]:
        logits = [term.detach().requires_grad_() for term in logits]
        terms = loss(logits, *labels, **predictions)
        return [terms.detach(), *torch.autograd.grad(terms.sum(), logits)]

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("use", [values, training])
@pytest.mark.parametrize("case", CASES)
def bench_asymmetric_cross_entropy(
    case: str, use: Callable[[Loss], Callable[..., Any]], dtype: torch.dtype, compare: Any, fused: Any
) -> None:
    torch._dynamo.reset()
    B, C = CASES[case]
    logits, y, predictions = inputs(B, C, dtype)
    labels = (y, predictions["yhat_s"], predictions["yhat_n"])
    *others, auto = fused("asymmetric_cross_entropy", DEVICE)

    def on(backend: str) -> Callable[[], Any]:
        def run() -> Any:
            with use_backend(backend):
                return use(ours)(logits, *labels)

        return run

    compiled = torch.compile(masking, fullgraph=True)
    rivals: dict[str, Callable[[], Any]] = {
        "eager": lambda: use(picking)(logits, *labels),
        "masked": lambda: use(masking)(logits, *labels),
        "reference": on("reference"),
        "compiled": lambda: use(compiled)(logits, *labels),
        **{backend: on(backend) for backend in others},
        auto: lambda: use(ours)(logits, *labels),
    }
    label = f"{case} {B}x{C} {use.__name__} {str(dtype).split('.')[1]}"
    sample = Sample(label, (logits, *labels), exact=False)
    exact = use(picking)([term.double() for term in logits], *labels)

    def check(name: str, result: list[Tensor]) -> None:
        if name in (*others, auto):
            assert_agrees(use(ours), sample, result)
        for got, truth in zip(result, exact, strict=True):
            assert (got - truth).norm() <= 4 * torch.finfo(dtype).eps * truth.norm()

    # Forward reads the logits; training reads them twice and writes as many gradients.
    nbytes = sum(term.nbytes for term in logits) * (1 if use is values else 3)
    compare("asymmetric_cross_entropy", label, rivals, check, nbytes=nbytes, device=DEVICE)
