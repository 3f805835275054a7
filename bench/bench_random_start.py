"""Random starts: what scripts do with the global generator, the reference, it compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import random_start, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import random_start as reference

SHAPES = {"128x3x32x32": (128, 3, 32, 32), "64x1x28x28": (64, 1, 28, 28), "64x3x224x224": (64, 3, 224, 224)}
RULES = {
    "linf": {"norm": "linf", "eps": 8 / 255, "seed": 2**40 + 1},
    "l2": {"norm": "l2", "eps": 0.5, "seed": 2**40 + 1},
    "l1": {"norm": "l1", "eps": 12.0, "seed": 2**40 + 1},
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def eager_linf(x: Tensor, eps: float) -> Tensor:
    return (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)


def eager_l2(x: Tensor, eps: float) -> Tensor:
    direction = torch.randn_like(x)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    radius = eps * torch.rand(len(x), 1, 1, 1, device=x.device) ** (1 / x[0].numel())
    return (x + radius * direction).clamp(0, 1)


def eager_l1(x: Tensor, eps: float) -> Tensor:
    """Laplace draws over their sum and one exponential draw more."""
    u = torch.empty_like(x).uniform_(-1, 1)
    draws = u.sign() * u.abs().clamp_(min=2**-24).log()  # u is 0 once in 2^24 draws, and 0 * log(0) is nan
    extra = torch.rand(len(x), 1, 1, 1, device=x.device).log()
    return (x + eps * draws / (draws.abs().flatten(1).sum(1).view(-1, 1, 1, 1) - extra)).clamp(0, 1)


EAGER = {"linf": eager_linf, "l2": eager_l2, "l1": eager_l1}


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def bench_random_start(shape: str, rule: str, layout: str, compare: Any, fused: Any, measuring: bool) -> None:
    size, kwargs = SHAPES[shape], RULES[rule]
    if not measuring:
        size = (min(size[0], 2), *size[1:])
    memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    x = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(DEVICE, memory_format=memory)
    index = torch.arange(1000, 1000 + len(x), device=DEVICE)
    out = torch.empty_like(x)
    backends = fused("random_start", DEVICE)
    automatic = backends[-1] if backends else "reference"

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        def call() -> Tensor:
            return random_start(x, index=index, **kwargs, **more)

        def run() -> Tensor:
            with use_backend(backend):
                return call()

        # Entering a backend takes 24 us, a third of the smallest case; nobody enters the one that is chosen anyway.
        return call if backend == automatic else run

    eps = torch.tensor(kwargs["eps"], device=DEVICE)
    law = "pixel" if rule == "linf" else rule
    torch._dynamo.reset()
    compiled = torch.compile(reference.random_start, fullgraph=True)
    rivals: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: EAGER[rule](x, kwargs["eps"]),
        "reference": on("reference"),
        "compiled": lambda: compiled(x, eps, index, law=law, seed=kwargs["seed"], bounds=(0.0, 1.0)),
        **{backend: on(backend, out=out) for backend in backends},
    }
    expected = on("reference")()
    sample = Sample(f"{shape}-{rule}-{layout}", (x,), {**kwargs, "index": index}, exact=rule == "linf")

    def check(name: str, result: Tensor) -> None:
        if name == "eager":
            # Other draws from the same law: the mean distance of a sample is the same.
            distance = [(t - x).flatten(1).norm(dim=1).mean() for t in (result, expected)]
            torch.testing.assert_close(*distance, rtol=0.05, atol=0)
        elif name == "compiled":
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
        else:
            assert_agrees(random_start, sample, [result])

    # x in, the start out.
    compare("random_start", sample.label, rivals, check, nbytes=2 * x.nbytes, device=DEVICE)
