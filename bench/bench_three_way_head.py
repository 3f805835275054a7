"""The head of the three-way model: three passes as the paper writes them, shared products, these compiled, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agrees
from torch import Tensor

from robustfast.ops import three_way_head, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import three_way_head as reference

B, C = 128, 10
WIDTHS = {"SmallCNN": 200, "PreActResNet18": 512, "WRN-34-10": 640}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Head = Callable[..., tuple[Tensor, Tensor, Tensor]]


def inputs(H: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H), (B, H), (H, 2 * H), (H,), (C, H), (C,)
    return tuple((torch.randn(s, generator=generator) / s[-1] ** 0.5).to(DEVICE, dtype) for s in shapes)


def eager(
    z_r: Tensor, z_n: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As the paper writes it: the head runs three times, zeros included."""

    def f(z: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(z, w1, b1)), w2, b2)

    zero = torch.zeros_like(z_r)
    return f(torch.cat([z_r, z_n], 1)), f(torch.cat([z_r, zero], 1)), f(torch.cat([zero, z_n], 1))


def logits(head: Head) -> Callable[..., tuple[Tensor, ...]]:
    return torch.no_grad()(head)


def attack(head: Head) -> Callable[..., tuple[Tensor, ...]]:
    """Gradients of the representations alone; the weights are frozen, which the compiled rival needs."""

    def run(z_r: Tensor, z_n: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        z = z_r.detach().requires_grad_(), z_n.detach().requires_grad_()
        return torch.autograd.grad(sum(h.sum() for h in head(*z, *(w.detach() for w in weights))), z)

    return run


def training(head: Head) -> Callable[..., tuple[Tensor, ...]]:
    def run(*arguments: Tensor) -> tuple[Tensor, ...]:
        arguments = tuple(t.detach().requires_grad_() for t in arguments)
        return torch.autograd.grad(sum(h.sum() for h in head(*arguments)), arguments)

    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("use", [logits, attack, training])
@pytest.mark.parametrize("model", WIDTHS)
def bench_three_way_head(
    model: str, use: Callable[[Head], Callable[..., Any]], dtype: torch.dtype, compare: Any, fused: Any
) -> None:
    torch._dynamo.reset()
    arguments = inputs(WIDTHS[model], dtype)
    *others, auto = fused("three_way_head", DEVICE)

    def on(backend: str) -> Callable[[], Any]:
        def run() -> Any:
            with use_backend(backend):
                return use(three_way_head)(*arguments)

        return run

    compiled = torch.compile(reference.three_way_head, fullgraph=True)
    rivals: dict[str, Callable[[], Any]] = {
        "eager": lambda: use(eager)(*arguments),
        "reference": lambda: use(reference.three_way_head)(*arguments),
        "compiled": lambda: use(compiled)(*arguments),
        **{backend: on(backend) for backend in others},
        auto: lambda: use(three_way_head)(*arguments),
    }
    label = f"{model} H={WIDTHS[model]} {use.__name__} {str(dtype).split('.')[1]}"
    exact = [t.double() for t in use(eager)(*(t.double() for t in arguments))]

    def check(name: str, result: tuple[Tensor, ...]) -> None:
        if name in (*others, auto):
            sample = Sample(label, arguments, exact=DEVICE.type == "cpu")
            assert_agrees(use(three_way_head), sample, list(result))
        # 3.8 units were seen, in bfloat16, of the reference itself; 1.8 in float32.
        for got, truth in zip(result, exact, strict=True):
            assert (got - truth).norm() <= 8 * torch.finfo(dtype).eps * truth.norm()

    compare("three_way_head", label, rivals, check)


@pytest.mark.parametrize("model", WIDTHS)
def bench_between_the_products(model: str, compare: Any, fused: Any) -> None:
    """What the kernel itself replaces: add, concatenate, add the bias, ReLU."""
    torch._dynamo.reset()
    H = WIDTHS[model]
    p_r, p_n = torch.randn(2, B, H, device=DEVICE)
    b1 = torch.randn(H, device=DEVICE)
    library = {"cpp": "robustfast", "cuda": "robustfast", "triton": "robustfast_triton"}
    compiled = torch.compile(reference.three_way_hidden, fullgraph=True)
    rivals: dict[str, Callable[[], Tensor]] = {
        "reference": lambda: reference.three_way_hidden(p_r, p_n, b1),
        "compiled": lambda: compiled(p_r, p_n, b1),
    }
    for backend in fused("three_way_head", DEVICE):
        op = getattr(torch.ops, library[backend]).three_way_head.default
        rivals[backend] = lambda op=op: op(p_r, p_n, b1)
    expected = reference.three_way_hidden(p_r, p_n, b1)

    def check(name: str, result: Tensor) -> None:
        assert torch.equal(result, expected)

    nbytes = 5 * p_r.nbytes  # two half products in, three ways out
    compare(
        "three_way_head", f"{model} H={H} between the products", rivals, check, nbytes=nbytes, device=DEVICE
    )
