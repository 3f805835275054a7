"""A batch norm in eval mode with the sum before it and the ReLU behind it, forward and backward: as networks write it,
the reference, that compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agrees
from measure import graphed_seconds
from torch import Tensor

from robustfast.attacks.cuda_graph import CaptureError
from robustfast.ops import affine_relu, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import affine_relu as reference

# What PreAct-ResNet18 has after its first, second and last stage, at batch 128.
SHAPES = {"64x32x32": (128, 64, 32, 32), "128x16x16": (128, 128, 16, 16), "512x4x4": (128, 512, 4, 4)}
FORMS = ("plain", "residual", "residual-sum")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Forward = Callable[..., tuple[Tensor, ...]]


def training(forward: Forward) -> Callable[..., list[Tensor]]:
    """Results and the gradient of x, for (x, residual or None, gradients of the results, tables)."""

    def run(x: Tensor, residual: Tensor | None, grads: tuple[Tensor, ...], *tables: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        results = forward(x, residual, *tables)[: len(grads)]
        return [*(r.detach() for r in results), *torch.autograd.grad(results, x, grads)]

    return run


def eager(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """As a network writes it; with a mean of 0, and a variance of 1 with eps, weight and bias are scale and shift."""
    t = x if residual is None else x + residual
    # Before torch 2.13 eps may not be 0.
    mean, var = torch.zeros_like(scale), torch.full_like(scale, 1 - 1e-5)
    return torch.relu(F.batch_norm(t, mean, var, scale, shift, False, 0.0, 1e-5)), t


def plain(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    return reference.affine_relu(x, scale, shift, residual)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SHAPES)
def bench_affine_relu(
    size: str, form: str, compare: Any, fused: Any, measuring: bool, benchmark: Any
) -> None:
    shape = SHAPES[size] if measuring else (4, *SHAPES[size][1:])
    generator = torch.Generator().manual_seed(0)

    def image() -> Tensor:
        t = torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16)
        return t.contiguous(memory_format=torch.channels_last)

    keep_sum = form == "residual-sum"
    x, residual = image(), None if form == "plain" else image()
    grads = tuple(image() for _ in range(1 + keep_sum))
    tables = (
        torch.rand(shape[1], generator=generator).to(DEVICE) + 0.5,
        torch.randn(shape[1], generator=generator).to(DEVICE),
    )
    arguments = x, residual, grads, *tables

    def fused_form(x: Tensor, residual: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
        out = affine_relu(x, scale, shift, residual=residual, keep_sum=keep_sum)
        return out if isinstance(out, tuple) else (out,)

    ours = training(fused_form)

    def on(backend: str) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with use_backend(backend):
                return ours(*arguments)

        return run

    torch._dynamo.reset()
    *others, auto = fused("affine_relu", DEVICE)
    compiled = training(torch.compile(plain, fullgraph=True))
    rivals: dict[str, Callable[[], list[Tensor]]] = {
        "eager": lambda: training(eager)(*arguments),
        "reference": on("reference"),
        "compiled": lambda: compiled(*arguments),
        **{backend: on(backend) for backend in others},
        auto: lambda: ours(*arguments),
    }
    expected = on("reference")()
    sample = Sample(f"{size}-{form}", arguments)

    def check(name: str, result: list[Tensor]) -> None:
        if name in (*others, auto):
            assert_agrees(ours, sample, result)
            return
        # Other roundings: two units of bfloat16, and beside 0 another side of it for one in a thousand.
        for got, wanted in zip(result, expected, strict=True):
            scale = wanted.float().abs().max()
            near = (got.float() - wanted.float()).abs() <= 2 * torch.finfo(torch.bfloat16).eps * scale
            assert (~near).float().mean() <= 1e-3, name

    # Forward: x, the residual, y, the sum; backward: the gradients of the results and that of x; a bit there and back.
    images = 2 + (residual is not None) + keep_sum + len(grads) + 1
    nbytes = images * x.nbytes + 2 * x.numel() // 8
    case = "x".join(map(str, shape)) + f"-{form}"
    compare("affine_relu", case, rivals, check, nbytes=nbytes, device=DEVICE)
    if measuring and DEVICE.type == "cuda":
        # Called one by one, the host's share of a call outlasts the kernels.
        in_graph = {name: in_a_graph(call) for name, call in rivals.items()}
        benchmark.extra_info.update(in_graph=in_graph, in_graph_seconds=in_graph[auto])


def in_a_graph(call: Callable[[], object]) -> float | None:
    try:
        return graphed_seconds(call, calls=20)
    except CaptureError:
        return None
