"""The margin loss: as people write it, by topk, that compiled, and ours; the value alone, and with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustfast.ops import margin_loss, use_backend

CASES = {"CIFAR-10": (128, 10), "CIFAR-100": (128, 100), "1000 classes": (128, 1000)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[[Tensor, Tensor], Tensor]


def masking(logits: Tensor, y: Tensor) -> Tensor:
    """The best eager form: the label's logit out of the way, then a maximum."""
    other = logits.scatter(1, y[:, None], -torch.inf).max(1).values
    return other - logits.gather(1, y[:, None]).squeeze(1)


def topk(logits: Tensor, y: Tensor) -> Tensor:
    """As in torchattacks and advertorch."""
    values, classes = torch.topk(logits, 2, dim=-1)
    own = logits[torch.arange(len(y), device=y.device), y]
    return torch.where(classes[..., 0] == y, values[..., 1], values[..., 0]) - own


def value(loss: Loss, logits: Tensor, y: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [loss(logits, y)]


def gradient(loss: Loss, logits: Tensor, y: Tensor) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    values = loss(leaf, y)
    return [values.detach(), torch.autograd.grad(values.sum(), leaf)[0]]


@pytest.mark.parametrize("use", [value, gradient])
@pytest.mark.parametrize("case", CASES)
def bench_margin_loss(case: str, use: Callable[..., list[Tensor]], compare: Any, fused: Any) -> None:
    B, K = CASES[case]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, K, generator=generator).mul(3).to(DEVICE)
    y = torch.randint(K, (B,), generator=generator).to(DEVICE)
    *others, auto = fused("margin_loss", DEVICE)

    def on(backend: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with use_backend(backend):
                return use(margin_loss, logits, y)

        return run

    compiled = torch.compile(masking, fullgraph=True)
    rivals: dict[str, Callable[[], list[Tensor]]] = {
        "topk": lambda: use(topk, logits, y),
        "masking": lambda: use(masking, logits, y),
        "reference": on("reference"),
        "compiled": lambda: use(compiled, logits, y),
        **{backend: on(backend) for backend in others},
        auto: lambda: use(margin_loss, logits, y),
    }
    expected = on("reference")()

    def check(name: str, result: list[Tensor]) -> None:
        assert all(torch.equal(got, wanted) for got, wanted in zip(result, expected, strict=True)), name

    # Logits are read once; with the gradient twice, and as many are written.
    nbytes = logits.nbytes * (1 if use is value else 3)
    compare("margin_loss", f"{case} {B}x{K} {use.__name__}", rivals, check, nbytes=nbytes, device=DEVICE)
