"""A draw from a diagonal Gaussian and its divergence, forward and backward: plain, that compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.attacks.draws import normal
from robustfast.ops import reparameterise, use_backend
from robustfast.ops.backend import Sample

CASES = {"CIFAR-10": (256, 2048), "MNIST": (256, 128), "digits": (120, 64)}
"""Data set of the auto-encoder to batch and entries of the code."""
SEED = 2**40 + 1
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Draw = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(mean: Tensor, log_variance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The same draws, as papers and scripts write it."""
    noise = normal(index, mean.shape[1:], seed=SEED, dtype=mean.dtype)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return mean + torch.exp(log_variance / 2) * noise, kl


def unkeyed(mean: Tensor, log_variance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """With noise from the global generator, which depends on all that was drawn before."""
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean), kl


def ours(mean: Tensor, log_variance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return reparameterise(mean, log_variance, seed=SEED, index=index)


@pytest.mark.parametrize("case", CASES)
def bench_reparameterise(case: str, compare: Any, fused: Any) -> None:
    B, L = CASES[case]
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, grad = torch.randn(3, B, L, generator=generator).to(DEVICE)
    index, row = torch.arange(1000, 1000 + B, device=DEVICE), torch.rand(B, generator=generator).to(DEVICE)

    def training(draw: Draw) -> Callable[[], list[Tensor]]:
        """Both results and the gradients of both moments."""

        def run() -> list[Tensor]:
            leaves = [t.detach().requires_grad_() for t in (mean, log_variance)]
            z, kl = draw(*leaves, index)
            return [z.detach(), kl.detach(), *torch.autograd.grad((z, kl), leaves, (grad, row))]

        return run

    def on(backend: str) -> Callable[[], list[Tensor]]:
        call = training(ours)

        def run() -> list[Tensor]:
            with use_backend(backend):
                return call()

        return run

    backends = fused("reparameterise", DEVICE)
    torch._dynamo.reset()
    rivals: dict[str, Callable[[], list[Tensor]]] = {
        "global generator": training(unkeyed),
        "plain": training(plain),
        "reference": on("reference"),
        "compiled": training(torch.compile(plain, fullgraph=True)),
        **{backend: on(backend) for backend in backends[:-1]},
        # Entering a backend takes time, and nobody enters the one that is chosen anyway.
        **{backend: training(ours) for backend in backends[-1:]},
    }
    expected = on("reference")()
    sample = Sample(case, (mean, log_variance), {"seed": SEED, "index": index}, exact=False)

    def check(name: str, result: list[Tensor]) -> None:
        if name == "global generator":
            # Other draws of the same law.
            torch.testing.assert_close(result[1], expected[1], rtol=1e-5, atol=1e-3)
            return
        for got, wanted in zip(result, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6 * float(wanted.abs().max()))
        if name in backends:
            assert_agrees(reparameterise, sample, result[:2])

    # Forward reads two tensors and writes two, backward reads four and writes two.
    compare("reparameterise", f"{case} {B}x{L}", rivals, check, nbytes=10 * mean.nbytes, device=DEVICE)
