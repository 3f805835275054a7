"""One APGD step: AutoAttack's eager chain, the compiled reference, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import apgd_step, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import apgd_step as reference

SHAPES = {"128x3x32x32": (128, 3, 32, 32), "64x1x28x28": (64, 1, 28, 28), "64x3x224x224": (64, 3, 224, 224)}
EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    x_adv, x_old = (
        (x + torch.empty_like(x).uniform_(-0.05, 0.05, generator=generator)).clamp(0, 1) for _ in range(2)
    )
    grad = torch.randn(shape, generator=generator)
    return x_adv.to(DEVICE), x_old.to(DEVICE), grad.to(DEVICE), x.to(DEVICE)


def eager_linf(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: float, a: float
) -> Tensor:
    """As in AutoAttack, down to the copy of each iterate; step sizes [B, 1, 1, 1]."""
    x_adv = x_adv.detach()
    last = x_adv - x_old
    x_adv.clone()
    new = x_adv + step_size * torch.sign(grad)
    new = torch.clamp(torch.min(torch.max(new, x - eps), x + eps), 0.0, 1.0)
    new = torch.clamp(
        torch.min(torch.max(x_adv + (new - x_adv) * a + last * (1 - a), x - eps), x + eps), 0.0, 1.0
    )
    return new + 0.0


def eager_l2(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: float, a: float
) -> Tensor:
    """As in AutoAttack."""

    def length(t: Tensor) -> Tensor:
        return (t**2).view(t.shape[0], -1).sum(-1).sqrt().view(-1, 1, 1, 1)

    def normalize(t: Tensor) -> Tensor:
        return t / (length(t) + 1e-12)

    def project(point: Tensor) -> Tensor:
        reach = torch.min(eps * torch.ones_like(x), length(point - x))
        return torch.clamp(x + normalize(point - x) * reach, 0.0, 1.0)

    x_adv = x_adv.detach()
    last = x_adv - x_old
    x_adv.clone()
    new = project(x_adv + step_size * normalize(grad))
    return project(x_adv + (new - x_adv) * a + last * (1 - a)) + 0.0


def in_place_linf(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: float, a: float
) -> Callable[[], Tensor]:
    """The best eager form: bounds computed once for the whole attack, every kernel in place."""
    lo, hi = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
    new, last = torch.empty_like(x), torch.empty_like(x)

    def run() -> Tensor:
        torch.sign(grad, out=new).mul_(step_size).add_(x_adv)
        torch.clamp(new, lo, hi, out=new).sub_(x_adv)
        torch.sub(x_adv, x_old, out=last)
        torch.add(x_adv, new, alpha=a, out=new).add_(last, alpha=1 - a)
        return torch.clamp(new, lo, hi, out=new)

    return run


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_apgd_step(shape: str, norm: str, compare: Any, fused: Any, measuring: bool) -> None:
    size, eps = SHAPES[shape], EPS[norm]
    if not measuring:
        size = (min(size[0], 8), *size[1:])
    images, out = inputs(size), torch.empty(size, device=DEVICE)
    # One step size for each sample, as the attack has them.
    step_size = torch.full(size[:1], eps if norm == "l1" else 2 * eps, device=DEVICE)
    kwargs = {"step_size": step_size, "eps": eps, "norm": norm}

    def on(backend: str, **more: Any) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with use_backend(backend):
                return apgd_step(*images, **kwargs, **more)

        return run

    rivals: dict[str, Callable[[], Tensor]] = {}
    wide = step_size.view(-1, 1, 1, 1)
    if norm == "linf":
        rivals["eager"] = lambda: eager_linf(*images, wide, eps, 0.75)
        rivals["in-place"] = in_place_linf(*images, wide, eps, 0.75)
    elif norm == "l2":
        rivals["eager"] = lambda: eager_l2(*images, wide, eps, 0.75)
    rivals["reference"] = on("reference")
    compiled = torch.compile(reference.apgd_step, fullgraph=True)
    radius, a, share = (torch.tensor(number, device=DEVICE) for number in (eps, 0.75, 0.2))
    rivals["compiled"] = lambda: compiled(*images, step_size, radius, a, share, norm=norm, bounds=(0.0, 1.0))
    rivals |= {name: on(name, out=out) for name in fused("apgd_step", DEVICE)[:-1]}
    rivals["fused"] = lambda: apgd_step(*images, **kwargs, out=out)

    expected = on("reference")()
    sample = Sample(f"{shape}-{norm}", images, kwargs, exact=norm == "linf")

    def check(name: str, result: Tensor) -> None:
        if name == "eager" and norm == "linf":
            assert torch.equal(result, expected)
        elif name in ("eager", "in-place", "compiled"):
            # Other roundings of the same point: at most an ulp of the bounds, or of a norm.
            torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        else:
            assert_agrees(apgd_step, sample, [result])

    # x_adv, x_old, grad and x in, the new x_adv out; an l1 step has no momentum and leaves x_old alone.
    nbytes = (4 if norm == "l1" else 5) * images[0].nbytes
    compare("apgd_step", sample.label, rivals, check, nbytes=nbytes, device=DEVICE)
