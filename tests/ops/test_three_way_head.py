from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from agreement import assert_agrees
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast import use_backend
from robustfast.ops import backends, three_way_head
from robustfast.ops.backend import Sample
from robustfast.reference import three_way_head as reference

HERE = [name for name, reason in backends()["three_way_head"].items() if reason is None and name != "cuda"]
LIBRARY = {"reference": "robustfast_reference", "triton": "robustfast_triton"}
NAMES = ("z_r", "z_n", "w1", "b1", "w2", "b2")


def inputs(B: int = 6, H: int = 12, C: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(B * H)
    shapes = (B, H), (B, H), (H, 2 * H), (H,), (C, H), (C,)
    return tuple(
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    )


def low_level(backend: str) -> Any:
    return getattr(torch.ops, LIBRARY.get(backend, "robustfast"))


def concatenated(
    z_r: Tensor, z_n: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, ...]:
    """The three ways as the paper writes them: one head on [z_r, z_n], [z_r, 0] and [0, z_n]."""

    def f(z: Tensor) -> Tensor:
        return nn.functional.linear(torch.relu(nn.functional.linear(z, w1, b1)), w2, b2)

    zero = torch.zeros_like(z_r)
    return tuple(f(torch.cat(pair, dim=1)) for pair in ((z_r, z_n), (z_r, zero), (zero, z_n)))


def value_and_gradients(
    head: Callable[..., tuple[Tensor, ...]], *arguments: Tensor, wanted: tuple[int, ...] = tuple(range(6))
) -> list[Tensor]:
    logits = head(*arguments)
    weights = [torch.randn(h.shape, generator=torch.Generator().manual_seed(i)) for i, h in enumerate(logits)]
    directions = [weight.to(h.dtype) for weight, h in zip(weights, logits, strict=True)]
    return [*logits, *torch.autograd.grad(logits, [arguments[i] for i in wanted], directions)]


@pytest.mark.parametrize("backend", HERE)
def test_equals_the_concatenated_form(backend: str) -> None:
    with use_backend(backend):
        ours = value_and_gradients(three_way_head, *inputs())
    for got, expected in zip(ours, value_and_gradients(concatenated, *inputs()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_reference_equals_the_concatenated_form() -> None:
    ours = value_and_gradients(reference.three_way_head, *inputs())
    for got, expected in zip(ours, value_and_gradients(concatenated, *inputs()), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", HERE)
def test_hand_computed(backend: str) -> None:
    """H = 1: hidden units relu(2 z_r - 3 z_n + 1), logits (hidden, 10 - hidden)."""
    z_r, z_n = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5], [-2.0]])
    weights = (
        torch.tensor([[2.0, -3.0]]),
        torch.tensor([1.0]),
        torch.tensor([[1.0], [-1.0]]),
        torch.tensor([0.0, 10.0]),
    )
    with use_backend(backend):
        h_s, h_r, h_n = three_way_head(z_r, z_n, *weights)
    assert h_s.tolist() == [[1.5, 8.5], [5.0, 5.0]]
    assert h_r.tolist() == [[3.0, 7.0], [0.0, 10.0]]
    assert h_n.tolist() == [[0.0, 10.0], [7.0, 3.0]]


@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_are_those_of_the_reference(backend: str, dtype: torch.dtype) -> None:
    """To the bit: the same products of the same numbers, and a bias that sums in float64."""
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts float32 to bfloat16 where a GPU rounds")
    arguments = inputs(33, 40, 10, dtype)
    with use_backend(backend):
        ours = value_and_gradients(three_way_head, *arguments)
    with use_backend("reference"):
        theirs = value_and_gradients(three_way_head, *arguments)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


@pytest.mark.parametrize("backend", HERE)
def test_a_way_sends_nothing_to_the_encoder_it_ignores(backend: str) -> None:
    z_r, z_n, *weights = inputs()
    with use_backend(backend):
        h_s, h_r, h_n = three_way_head(z_r, z_n, *weights)
        gradients = [torch.autograd.grad(h.sum(), (z_r, z_n), retain_graph=True) for h in (h_s, h_r, h_n)]
    assert [bool(g.any()) for g, _ in gradients] == [True, True, False]
    assert [bool(g.any()) for _, g in gradients] == [True, False, True]


class Products(TorchDispatchMode):
    """Shapes of the matrix products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::mm", "aten::addmm"):
            left, right = args[-2:]
            self.shapes[(left.shape[0], left.shape[1], right.shape[1])] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("frozen", [True, False])
def test_an_attack_makes_no_weight_gradient(backend: str, frozen: bool) -> None:
    B, H, C = 6, 12, 5
    z_r, z_n, *weights = inputs(B, H, C)
    weights = [w.detach() if frozen else w for w in weights]
    with use_backend(backend):
        with Products() as forward:
            logits = three_way_head(z_r, z_n, *weights)
        with Products() as backward:
            torch.autograd.grad(sum(h.sum() for h in logits), (z_r, z_n))
    # The two half products, each once, and one product for the logits of all ways.
    assert forward.shapes == {(B, H, H): 2, (3 * B, H, C): 1}
    assert backward.shapes == {(3 * B, C, H): 1, (B, H, H): 2}


def test_training_makes_each_weight_gradient_once() -> None:
    B, H, C = 6, 12, 5
    arguments = inputs(B, H, C)
    logits = three_way_head(*arguments)
    with Products() as backward:
        torch.autograd.grad(sum(h.sum() for h in logits), arguments)
    assert backward.shapes == {(3 * B, C, H): 1, (B, H, H): 2, (H, B, H): 2, (C, 3 * B, H): 1}


@pytest.mark.parametrize("backend", HERE)
def test_relu_passes_nan_and_stops_at_zero(backend: str) -> None:
    p = torch.tensor([[0.0, -1.0, torch.nan, torch.inf]], requires_grad=True)
    q = torch.zeros(1, 4, requires_grad=True)
    hidden = low_level(backend).three_way_head(p, q, torch.zeros(4))
    plain = torch.relu(torch.cat([p + q, p, q]))
    torch.testing.assert_close(hidden, plain, rtol=0, atol=0, equal_nan=True)
    ours, theirs = (torch.autograd.grad(h.sum(), (p, q)) for h in (hidden, plain))
    assert [g.tolist() for g in ours] == [g.tolist() for g in theirs] == [[[0, 0, 2, 2]], [[0, 0, 1, 1]]]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    """Products in the autocast dtype, and never worse than twice the error of the head written with torch.nn.Linear."""
    arguments = inputs(16, 24, 10, torch.float32)

    def cast(head: Callable[..., tuple[Tensor, ...]]) -> Callable[..., list[Tensor]]:
        def run(*arguments: Tensor) -> list[Tensor]:
            with torch.autocast("cpu", dtype):
                logits = head(*arguments)
            assert all(h.dtype == dtype for h in logits)
            return value_and_gradients(lambda *_: tuple(h.float() for h in logits), *arguments)

        return run

    with use_backend(backend):
        ours = cast(three_way_head)(*arguments)
    theirs = cast(concatenated)(*arguments)
    exact = value_and_gradients(concatenated, *(t.detach().double().requires_grad_() for t in arguments))
    for got, plain, truth in zip(ours, theirs, exact, strict=True):
        assert got.dtype == torch.float32
        slack = torch.finfo(dtype).eps * truth.abs().max()
        assert (got - truth).abs().max() <= 2 * (plain - truth).abs().max() + slack


@pytest.mark.parametrize("backend", HERE)
def test_half_products_are_added_in_float32_and_rounded_once(backend: str) -> None:
    # 1 + 2^-8 lies halfway between two bfloat16 and would be rounded to 1, and again after the bias is added.
    p_r, p_n = torch.tensor([[1.0]]).bfloat16(), torch.tensor([[2.0**-8]]).bfloat16()
    hidden = low_level(backend).three_way_head(p_r, p_n, torch.tensor([2.0**-8]))
    assert hidden[0].item() == 1 + 2.0**-7


@pytest.mark.parametrize("backend", HERE)
def test_gradcheck(backend: str) -> None:
    arguments = inputs(3, 4, 2)
    with use_backend(backend):
        assert torch.autograd.gradcheck(three_way_head, arguments)


@pytest.mark.parametrize("backend", HERE)
def test_opcheck_with_gradients(backend: str) -> None:
    ops = low_level(backend)
    p, d = torch.randn(2, 5, 4), torch.randn(15, 4)
    hidden = ops.three_way_head(*p, torch.randn(4))
    for grad in (False, True):
        operands = [t.detach().clone().requires_grad_(grad) for t in (*p, torch.randn(4))]
        opcheck(ops.three_way_head.default, operands)
        opcheck(ops.three_way_head.default, [operands[0], operands[1].detach(), operands[2].detach()])
    for bias in (False, True):
        opcheck(ops.three_way_head_backward.default, (d, hidden, bias))


@pytest.mark.parametrize("backend", HERE)
def test_a_second_derivative_is_refused(backend: str) -> None:
    arguments = inputs()
    with use_backend(backend):
        (g,) = torch.autograd.grad(
            three_way_head(*arguments)[0].square().sum(), arguments[0], create_graph=True
        )
        with pytest.raises(RuntimeError, match="three_way_head has no second derivative"):
            g.sum().backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_with_its_gradient(autocast: bool) -> None:
    torch._dynamo.reset()

    def loss(*arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = three_way_head(*arguments)
        return sum(h.float().square().mean() for h in logits)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for B in (6, 7):
        arguments = inputs(B, dtype=torch.float32)
        eager, traced = (
            [f(*arguments), *torch.autograd.grad(f(*arguments), arguments)] for f in (loss, compiled)
        )
        for ours, theirs in zip(traced, eager, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_threads_do_not_change_a_bit() -> None:
    d, hidden = torch.randn(1200, 640), torch.randn(1200, 640).relu()
    backward = torch.ops.robustfast.three_way_head_backward
    threads = torch.get_num_threads()
    alone = backward(d, hidden, True)
    torch.set_num_threads(4)
    try:
        together = backward(d, hidden, True)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, module: object, *names: str) -> Iterator[Counter[str]]:
    """Launches of Triton kernels, by name."""
    launches: Counter[str] = Counter()

    class Kernel:
        def __init__(self, name: str, kernel: Any) -> None:
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launches[self.name] += 1
            return self.kernel[grid]

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(module, name, Kernel(name, getattr(module, name)))
        yield launches


def test_triton_launches_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in HERE:
        pytest.skip("triton cannot run here")
    from robustfast.kernels import three_way_head as kernels

    arguments = inputs(dtype=torch.float32)
    with (
        use_backend("triton"),
        counted(monkeypatch, kernels, "_hidden_kernel", "_hidden_backward_kernel") as launches,
    ):
        value_and_gradients(three_way_head, *arguments)
    assert launches == {"_hidden_kernel": 1, "_hidden_backward_kernel": 1}


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("H", [200, 201])
def test_one_kernel_each_way_on_a_gpu(backend: str, bias: bool, H: int) -> None:
    ops = low_level(backend)
    p_r, p_n, b1, d = (torch.randn(s, H, device="cuda") for s in (128, 128, 1, 384))
    b1 = b1[0]

    def both() -> None:
        ops.three_way_head_backward(d, ops.three_way_head(p_r, p_n, b1), bias)

    both()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        both()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 2, kernels


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_on_a_gpu(backend: str, dtype: torch.dtype) -> None:
    arguments = tuple(t.detach().cuda().requires_grad_() for t in inputs(130, 72, 10, dtype))

    def run(*arguments: Tensor) -> list[Tensor]:
        logits = three_way_head(*arguments)
        return [*logits, *torch.autograd.grad(sum(h.sum() for h in logits), arguments)]

    sample = Sample("gradients", arguments, exact=False)
    with use_backend(backend):
        assert_agrees(run, sample, run(*arguments))


GOOD = dict(zip(NAMES, inputs(), strict=True))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"z_r": None}, TypeError, "z_r is NoneType, expected a tensor"),
        ({"b1": None}, TypeError, "b1 is NoneType, expected a tensor"),
        ({"w2": [[0.0]]}, TypeError, "w2 is list, expected a tensor"),
        ({"z_r": torch.zeros(6)}, ValueError, r"z_r has shape \(6,\), expected \[B, H\]"),
        ({"z_n": torch.zeros(5, 12).double()}, ValueError, r"z_n has shape \(5, 12\), expected \(6, 12\)"),
        ({"w1": torch.zeros(12, 12).double()}, ValueError, r"w1 has shape \(12, 12\), expected \(12, 24\)"),
        ({"w2": torch.zeros(5)}, ValueError, r"w1 and w2 have shapes \(12, 24\) and \(5,\)"),
        ({"b2": torch.zeros(4).double()}, ValueError, r"b2 has shape \(4,\), expected \(5,\)"),
        ({"b1": torch.zeros(12)}, TypeError, r"b1 is torch.float32, expected that of z_r, torch.float64"),
        (
            {"b1": torch.zeros(12, device="meta").double()},
            ValueError,
            "b1 is on meta, expected the device of z_r, cpu",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    wrong: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="three_way_head: " + message):
        three_way_head(**{**GOOD, **wrong})


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"three_way_head: z_r is torch\.int64, expected a floating dtype"):
        three_way_head(*(t.detach().long() for t in inputs()))
