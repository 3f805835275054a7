"""One attack step: the usual eager chain, the best eager form, the compiled reference, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from measure import graphed_seconds
from torch import Tensor

from robustfast.ops import pgd_step, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import pgd_step as reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {"128x3x32x32": (128, 3, 32, 32)}
if DEVICE.type == "cuda":
    # Three times the cache of an H200 per tensor, so that it is the memory that is measured. Early: a run that is cut
    # short has the cases that are asked for.
    SHAPES["256x3x224x224"] = (256, 3, 224, 224)
SHAPES |= {"64x1x28x28": (64, 1, 28, 28), "64x3x224x224": (64, 3, 224, 224)}
# Too short for a clock on the host: there the time inside a CUDA graph is kept as well.
LAUNCH_BOUND = "128x3x32x32"
RULES = {
    "linf": {"norm": "linf", "eps": 8 / 255, "step_size": 2 / 255},
    "l2": {"norm": "l2", "eps": 0.5, "step_size": 0.1},
    "l1": {"norm": "l1", "eps": 12.0, "step_size": 1.0},
    "l1-grad": {"norm": "l1", "eps": 12.0, "step_size": 1.0, "step": "grad"},
}
AUTO = {"linf": "sign", "l2": "grad", "l1": "topq"}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    x_adv = (x + torch.empty_like(x).uniform_(-0.05, 0.05, generator=generator)).clamp(0, 1)
    grad = torch.randn(shape, generator=generator)
    return x_adv.to(DEVICE), grad.to(DEVICE), x.to(DEVICE)


def eager_linf(x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float, eps: float) -> Tensor:
    """As most scripts have it: eight kernels, seven temporaries."""
    x_adv = x_adv + step_size * grad.sign()
    return torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0, 1)


def eager_l2(x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float, eps: float) -> Tensor:
    """As in torchattacks' PGDL2."""
    grad = grad / (grad.flatten(1).norm(dim=1) + 1e-10).view(-1, 1, 1, 1)
    delta = x_adv + step_size * grad - x
    factor = torch.clamp(eps / delta.flatten(1).norm(dim=1), max=1.0)
    return torch.clamp(x + delta * factor.view(-1, 1, 1, 1), 0, 1)


def in_place_linf(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float, eps: float
) -> Callable[[], Tensor]:
    """The best eager form: bounds computed once for the whole attack, three kernels in place."""
    lo, hi = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
    sign, out = torch.empty_like(x), torch.empty_like(x)

    def run() -> Tensor:
        torch.sign(grad, out=sign)
        torch.add(x_adv, sign, alpha=step_size, out=out)
        return torch.clamp(out, lo, hi, out=out)

    return run


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def bench_pgd_step(shape: str, rule: str, compare: Any, fused: Any, measuring: bool, benchmark: Any) -> None:
    size, kwargs = SHAPES[shape], RULES[rule]
    if not measuring:
        size = (min(size[0], 8), *size[1:])
    images, out = inputs(size), torch.empty(size, device=DEVICE)
    step_size, eps = kwargs["step_size"], kwargs["eps"]
    sizes = [torch.tensor(size, device=DEVICE) for size in (step_size, eps)]

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return pgd_step(*images, **kwargs, **more)

        return run

    rivals: dict[str, Callable[[], Tensor]] = {}
    if rule == "linf":
        rivals["eager"] = lambda: eager_linf(*images, step_size, eps)
        rivals["in-place"] = in_place_linf(*images, step_size, eps)
    elif rule == "l2":
        rivals["eager"] = lambda: eager_l2(*images, step_size, eps)
    rivals["reference"] = on("reference")
    compiled = torch.compile(reference.pgd_step, fullgraph=True)
    names = {"norm": kwargs["norm"], "step": kwargs.get("step") or AUTO[kwargs["norm"]], "bounds": (0.0, 1.0)}
    k = max(1, round(0.01 * images[0][0].numel()))
    rivals["compiled"] = lambda: compiled(*images, *sizes, k=k, **names)
    rivals |= {name: on(name, out=out) for name in fused("pgd_step", DEVICE)[:-1]}
    rivals["fused"] = lambda: pgd_step(*images, **kwargs, out=out)

    expected = on("reference")()
    sample = Sample(f"{shape}-{rule}", images, kwargs, exact=rule == "linf")

    def check(name: str, result: Tensor) -> None:
        if name in ("eager", "in-place", "compiled"):
            # Other roundings of the same point: at most an ulp of the bounds, or of a norm.
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        else:
            assert_agrees(pgd_step, sample, [result])

    nbytes = 4 * images[0].nbytes  # x_adv, grad and x in, the new x_adv out
    compare("pgd_step", sample.label, rivals, check, nbytes=nbytes, device=DEVICE)
    if measuring and shape == LAUNCH_BOUND and (seconds := graphed_seconds(rivals["fused"])) is not None:
        benchmark.extra_info["in_graph_seconds"] = seconds
