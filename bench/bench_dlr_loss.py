"""Difference of logits ratio: by sorting, by topk, that compiled, and ours; the value alone, and with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustfast.ops import dlr_loss, use_backend

CASES = {"CIFAR-10": (128, 10), "CIFAR-100": (128, 100), "1000 classes": (128, 1000)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[[Tensor, Tensor], Tensor]


def sorting(logits: Tensor, y: Tensor) -> Tensor:
    """As in AutoAttack and torchattacks: all classes sorted."""
    z, order = logits.sort(dim=1)
    first, own = (order[:, -1] == y).float(), logits[torch.arange(len(y), device=y.device), y]
    return -(own - z[:, -2] * first - z[:, -1] * (1.0 - first)) / (z[:, -1] - z[:, -3] + 1e-12)


def topk(logits: Tensor, y: Tensor) -> Tensor:
    """The best eager form."""
    z, order = logits.topk(3, dim=1)
    other = torch.where(order[:, 0] == y, z[:, 1], z[:, 0])
    return (other - logits.gather(1, y[:, None]).squeeze(1)) / (z[:, 0] - z[:, 2] + 1e-12)


def value(loss: Loss, logits: Tensor, y: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [loss(logits, y)]


def gradient(loss: Loss, logits: Tensor, y: Tensor) -> list[Tensor]:
    leaf = logits.detach().requires_grad_()
    values = loss(leaf, y)
    return [values.detach(), torch.autograd.grad(values.sum(), leaf)[0]]


@pytest.mark.parametrize("use", [value, gradient])
@pytest.mark.parametrize("case", CASES)
def bench_dlr_loss(case: str, use: Callable[..., list[Tensor]], compare: Any, fused: Any) -> None:
    B, K = CASES[case]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(B, K, generator=generator).mul(3).to(DEVICE)
    y = torch.randint(K, (B,), generator=generator).to(DEVICE)
    *others, auto = fused("dlr_loss", DEVICE)

    def on(backend: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with use_backend(backend):
                return use(dlr_loss, logits, y)

        return run

    compiled = torch.compile(topk, fullgraph=True)
    rivals: dict[str, Callable[[], list[Tensor]]] = {
        "sorting": lambda: use(sorting, logits, y),
        "topk": lambda: use(topk, logits, y),
        "reference": on("reference"),
        "compiled": lambda: use(compiled, logits, y),
        **{backend: on(backend) for backend in others},
        auto: lambda: use(dlr_loss, logits, y),
    }
    expected = on("reference")()

    def check(name: str, result: list[Tensor]) -> None:
        for got, wanted in zip(result, expected, strict=True):
            # A compiler may contract or reassociate: an ulp of each part.
            tolerance = 1e-5 if name == "compiled" else 0
            torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)

    # Logits are read once; with the gradient twice, and as many are written.
    nbytes = logits.nbytes * (1 if use is value else 3)
    compare("dlr_loss", f"{case} {B}x{K} {use.__name__}", rivals, check, nbytes=nbytes, device=DEVICE)
