from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from agreement import assert_agrees, results
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.ops import OPS, affine_relu, backends, use_backend
from robustfast.ops.backend import Sample
from robustfast.reference import affine_relu as reference

HERE = [name for name, reason in backends()["affine_relu"].items() if reason is None and name != "cuda"]
NAMESPACE = {"reference": "robustfast_reference", "cpp": "robustfast", "triton": "robustfast_triton"}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Call = Callable[..., Any]


def low_level(backend: str) -> Any:
    return getattr(torch.ops, NAMESPACE.get(backend, "robustfast"))


def images(count: int, *shape: int, last: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape) + count)
    values = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return [reference.in_order(v.to(dtype), last) for v in values]


def tables(C: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    scale, shift = torch.randn(2, C, generator=torch.Generator().manual_seed(C), dtype=torch.float64)
    return scale.to(dtype), shift.to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def plain(x: Tensor, scale: Tensor | None, shift: Tensor, *, residual: Tensor | None = None) -> Tensor:
    """As a network writes it, in the dtype of its tensors."""
    t = x if residual is None else x + residual
    one = torch.ones_like(shift)
    # Not by F.batch_norm, which before torch 2.13 asks for eps > 0.
    return torch.relu(torch.batch_norm(t, scale, shift, 0 * one, one, False, 0.0, 0.0, True)), t


# Values.


@pytest.mark.parametrize("backend", HERE)
def test_by_hand(backend: str) -> None:
    x = torch.tensor([[[1.0, -1.0], [0.5, -0.0]]])
    residual = torch.tensor([[[2.0, 1.0], [-2.5, 0.0]]])
    scale, shift = torch.tensor([2.0, -1.0]), torch.tensor([1.0, -0.5])
    with use_backend(backend):
        alone = affine_relu(x, scale, shift)
        shifted = affine_relu(x, None, shift)
        y, t = affine_relu(x, scale, shift, residual=residual, keep_sum=True)
    assert alone.tolist() == [[[3.0, 0.0], [0.0, 0.0]]]
    assert shifted.tolist() == [[[2.0, 0.0], [0.0, 0.0]]]
    assert t.tolist() == [[[3.0, 0.0], [-2.0, 0.0]]]
    assert y.tolist() == [[[7.0, 1.0], [1.5, 0.0]]]


@pytest.mark.parametrize("keep_sum", [False, True])
def test_the_sum_is_rounded_and_the_rest_is_rounded_once(keep_sum: bool) -> None:
    # 256 + 1 ties to 256 in bfloat16, 256 + 3 to 260; then 256 * 1.00390625 + 0.5 = 257.5, which bfloat16 has at 258.
    x = torch.full((1, 1, 1, 2), 256.0, dtype=torch.bfloat16)
    residual = torch.tensor([1.0, 3.0], dtype=torch.bfloat16).view(1, 1, 1, 2)
    scale, shift = torch.tensor([1.00390625]), torch.tensor([0.5])
    for backend in ("reference", *(b for b in HERE if b == "cpp")):
        with use_backend(backend):
            out = affine_relu(x, scale, shift, residual=residual, keep_sum=keep_sum)
        y, t = out if keep_sum else (out, None)
        assert y.flatten().tolist() == [258.0, 262.0]
        assert t is None or t.flatten().tolist() == [256.0, 260.0]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_values_and_gradients_are_those_of_batch_norm_and_relu(
    backend: str, last: bool, with_residual: bool
) -> None:
    shape = 3, 24, 5, 4
    x, residual, d_y, d_t = images(4, *shape, last=last, dtype=torch.float64)
    scale, shift = tables(24, torch.float64)
    leaves = [x.requires_grad_(), residual.requires_grad_()][: 1 + with_residual]
    keep = {"residual": residual} if with_residual else {}
    expected = plain(x, scale, shift, **keep)
    with use_backend(backend):
        got = affine_relu(x, scale, shift, **keep, keep_sum=True) if keep else affine_relu(x, scale, shift)
        got = got if with_residual else (got,)
        ours = torch.autograd.grad(got, leaves, (d_y, d_t)[: len(got)])
    theirs = torch.autograd.grad(expected[: len(got)], leaves, (d_y, d_t)[: len(got)])
    for a, b in zip((*got, *ours), (*expected[: len(got)], *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        assert a.stride() == x.stride()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((2, 8, 4, 4), False),
        ((2, 8, 4, 4), True),
        ((3, 20, 7, 3), True),  # rows of channels that do not divide a block
        ((2, 25, 3, 3), True),  # no vectors of channels
        ((2, 3, 7, 7), False),  # no vectors of a plane
        ((1, 6, 2, 2), False),  # planes of 4
        ((5, 9), False),
        ((2, 70, 31), False),
        ((2, 4, 41, 41), True),
    ],
    ids=str,
)
def test_every_backend_has_the_reference_s_values_and_gradients(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...], last: bool
) -> None:
    # Triton's interpreter cuts float32 to bfloat16 where a GPU rounds: what is near 0 may come to its other side.
    cut = dtype == torch.bfloat16 and backend == "triton"
    x, residual, d_y, d_t = images(4, *shape, last=last, dtype=dtype)
    scale, shift = tables(shape[1], wide(dtype))

    def run(*given: Tensor) -> list[Tensor]:
        x, residual, d_y, d_t, *tables_ = (t.detach() for t in given)
        x.requires_grad_()
        y, t = affine_relu(x, *tables_, residual=residual, keep_sum=True)
        (with_sum,) = torch.autograd.grad((y, t), x, (d_y, d_t))
        alone = affine_relu(x, None, tables_[1])
        (without,) = torch.autograd.grad(alone, x, d_y)
        return [y, t, alone] if cut else [y, t, with_sum, alone, without]

    sample = Sample(str(shape), (x, residual, d_y, d_t, scale, shift), exact=not cut)
    assert_agrees(run, sample, results(run, backend, *sample.args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_gradient_is_rounded_once(dtype: torch.dtype) -> None:
    x, residual, d_y, d_t = images(4, 2, 8, 5, 5, last=True, dtype=dtype)
    scale, shift = tables(8)
    y, t = affine_relu(x.requires_grad_(), scale, shift, residual=residual, keep_sum=True)
    (got,) = torch.autograd.grad((y, t), x, (d_y, d_t))
    exact = torch.where(y > 0, d_y.double() * scale.double().view(-1, 1, 1), 0) + d_t.double()
    # float32 rounds twice on the way, far below a unit of the half type.
    assert ((got - exact).abs() <= 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_values_end_as_through_relu(backend: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, tiny, -tiny, 1.0, -1.0]
    if (backend, dtype) != ("triton", torch.bfloat16):  # the interpreter reads these as 0
        values += [tiny / 8, -tiny / 8]
    x = torch.tensor(values, dtype=dtype).view(1, 1, -1).requires_grad_()
    scale, shift = torch.ones(1, dtype=wide(dtype)), torch.zeros(1, dtype=wide(dtype))
    # An infinite or NaN gradient of what ReLU cut off is cut off too.
    for d in (2.0, math.inf, math.nan):
        grad = torch.full_like(x, d)
        expected = torch.relu(x)
        with use_backend(backend):
            y = affine_relu(x, scale, shift)
            (got,) = torch.autograd.grad(y, x, grad)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        theirs = torch.autograd.grad(expected, x, grad)[0]
        torch.testing.assert_close(got, theirs, rtol=0, atol=0, equal_nan=True)


def test_what_rounds_to_zero_passes_no_gradient() -> None:
    """As in a network whose batch norm rounds before its ReLU looks."""
    x = torch.full((1, 1, 4), 2.0**-20, dtype=torch.float16, requires_grad=True)
    scale, shift = torch.tensor([2.0**-10]), torch.zeros(1)
    for backend in HERE:
        with use_backend(backend):
            y = affine_relu(x, scale, shift)
            (grad,) = torch.autograd.grad(y.sum(), x)
        assert not y.any()
        assert not grad.any()


# What is kept.


class Kept:
    """The tensors that a graph keeps for its backward pass."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def __enter__(self) -> Kept:
        def keep(t: Tensor) -> Tensor:
            self.tensors.append(t)
            return t

        self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.hooks.__exit__(*failure)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("keep_sum", [False, True])
def test_backward_keeps_one_bit_for_each_element_and_the_scale(backend: str, keep_sum: bool) -> None:
    x, residual = images(2, 3, 5, 7, 3)
    scale, shift = tables(5)
    with use_backend(backend), Kept() as kept:
        affine_relu(x.requires_grad_(), scale, shift, residual=residual, keep_sum=keep_sum)
    sizes = sorted((t.dtype == torch.uint8, t.numel()) for t in kept.tensors)
    assert sizes == [(False, 5), (True, math.ceil(x.numel() / 8))]
    with use_backend(backend), Kept() as kept, torch.no_grad():
        affine_relu(x, scale, shift, residual=residual, keep_sum=keep_sum)
    assert not kept.tensors


class Bits(TorchDispatchMode):
    """Whether each call of the op is asked for bits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("robustfast"):
            self.asked.append(args[5])
        return func(*args, **(kwargs or {}))


def test_no_bits_are_made_where_no_gradient_is_asked_for() -> None:
    x, residual = images(2, 2, 3, 4, 4)
    scale, shift = tables(3)
    with Bits() as bits:
        affine_relu(x, scale, shift, residual=residual)
        affine_relu(x, scale, shift, residual=residual.requires_grad_())
        affine_relu(x.requires_grad_(), scale, shift)
        with torch.no_grad():
            affine_relu(x, scale, shift, residual=residual)
        with torch.inference_mode():
            affine_relu(x, scale, shift)
    assert bits.asked == [False, True, True, False, False]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (3, 5, 7, 3), (1, 3, 1, 3)], ids=str)
def test_bits_lie_in_the_order_of_memory(backend: str, last: bool, shape: tuple[int, ...]) -> None:
    (x,) = images(1, *shape, last=last)
    scale, shift = tables(shape[1])
    y, t, mask = low_level(backend).affine_relu(x, None, scale, shift, False, True)
    memory = y.as_strided((y.numel(),), (1,))
    expected = [0] * math.ceil(y.numel() / 8)
    for e, value in enumerate(memory.tolist()):
        expected[e // 8] |= (value > 0) << e % 8
    assert mask.tolist() == expected
    assert t.shape == (0,)
    assert low_level(backend).affine_relu(x, None, scale, shift, False, False)[2].shape == (0,)


# Autograd.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("wanted", ["x", "residual", "both"])
@pytest.mark.parametrize("used", ["y", "t", "both"])
def test_each_use_of_each_result_has_its_gradient(backend: str, wanted: str, used: str) -> None:
    x, residual, d_y, d_t = images(4, 2, 4, 3, 3, dtype=torch.float64)
    scale, shift = tables(4, torch.float64)
    leaves = [
        t.requires_grad_() for t, name in ((x, "x"), (residual, "residual")) if wanted in (name, "both")
    ]

    def gradients(y: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        terms = {"y": [(y * d_y).sum()], "t": [(t * d_t).sum()]}
        return torch.autograd.grad(sum(terms["y"] + terms["t"] if used == "both" else terms[used]), leaves)

    with use_backend(backend):
        ours = gradients(*affine_relu(x, scale, shift, residual=residual, keep_sum=True))
    for got, expected in zip(ours, gradients(*plain(x, scale, shift, residual=residual)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_gradients_add_up_where_x_is_its_own_residual() -> None:
    """Both get one tensor; adding into it in place would count one of them twice."""
    (x,) = images(1, 2, 4, 3, 3, dtype=torch.float64)
    scale, shift = tables(4, torch.float64)
    x.requires_grad_()
    affine_relu(x, scale, shift, residual=x).sum().backward()
    expected = torch.autograd.grad(plain(x, scale, shift, residual=x)[0].sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-14, atol=1e-14)
    a, b = (t.requires_grad_() for t in images(2, 2, 4, 3, 3, dtype=torch.float64))
    for _ in range(2):
        affine_relu(a, scale, shift, residual=b).sum().backward()
    assert torch.equal(a.grad, b.grad)
    expected = torch.autograd.grad(plain(a, scale, shift, residual=b)[0].sum(), a)[0]
    torch.testing.assert_close(a.grad, 2 * expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("backend", HERE)
def test_other_layouts_of_residual_and_gradients_are_copied(backend: str) -> None:
    scale, shift = tables(6)
    for last in (False, True):
        x, residual, d_y, d_t = images(4, 2, 6, 4, 5, last=last)

        def run(*given: Tensor) -> list[Tensor]:
            x, residual, d_y, d_t = given
            x = x.detach().requires_grad_()
            y, t = affine_relu(x, scale, shift, residual=residual, keep_sum=True)
            return [y, t, *torch.autograd.grad((y, t), x, (d_y, d_t))]

        with use_backend(backend):
            expected = run(x, residual, d_y, d_t)
            for other in ((residual, d_y, d_t), (d_t, residual, d_y)):
                turned = [reference.in_order(t, not last) for t in other]
                ours, theirs = run(x, *turned), run(x, *other)
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
                assert [t.stride() for t in ours] == [t.stride() for t in expected]
            # As sum() hands it on: one number for all.
            one = torch.ones((), dtype=x.dtype).expand(x.shape)
            ours, theirs = run(x, residual, one, d_t), run(x, residual, torch.ones_like(x), d_t)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_there_is_no_second_derivative() -> None:
    (x,) = images(1, 2, 3, 4, 4)
    y = affine_relu(x.requires_grad_(), *tables(3))
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="affine_relu has no second derivative"):
        first.sum().backward()


def test_a_call_without_bits_refuses_to_make_a_gradient() -> None:
    (x,) = images(1, 2, 3, 4, 4)
    y, _, _ = torch.ops.robustfast.affine_relu(x.requires_grad_(), None, *tables(3), False, False)
    with pytest.raises(RuntimeError, match="kept no bits"):
        y.sum().backward()


@pytest.mark.parametrize("backend", HERE)
def test_opcheck_of_every_form(backend: str) -> None:
    ops = low_level(backend)
    scale, shift = tables(8)
    for last in (False, True):
        x, residual, d_y, d_t = images(4, 2, 8, 3, 3, last=last)
        # All that may be there, and nothing that may be absent.
        arguments = (residual, scale, shift, True, True) if last else (None, None, shift, False, True)
        opcheck(ops.affine_relu.default, (x.requires_grad_(), *arguments))
        mask = ops.affine_relu(x, *arguments)[2]
        given = (d_y, d_t, mask, scale, last) if last else (d_y, None, mask, None, last)
        opcheck(ops.affine_relu_backward.default, given)


@pytest.mark.parametrize("last", [False, True])
def test_compiles_with_its_gradient(last: bool) -> None:
    torch._dynamo.reset()
    scale, shift = tables(8)

    def loss(x: Tensor, residual: Tensor) -> Tensor:
        y, t = affine_relu(x, scale, shift, residual=residual, keep_sum=True)
        return (affine_relu(y, None, shift) + t).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for B in (2, 3):
        x, residual = (t.requires_grad_() for t in images(2, B, 8, 4, 4, last=last))
        eager, traced = (
            [f(x, residual), *torch.autograd.grad(f(x, residual), (x, residual))] for f in (loss, compiled)
        )
        for ours, theirs in zip(traced, eager, strict=True):
            assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert torch.equal(compiled(x, residual), loss(x, residual))


@pytest.mark.parametrize("last", [False, True])
def test_threads_do_not_change_a_bit(last: bool) -> None:
    x, residual, d_y = images(3, 3, 50, 33, 31, last=last)
    scale, shift = tables(50)

    def run() -> list[Tensor]:
        y, t, mask = torch.ops.robustfast.affine_relu(x, residual, scale, shift, True, True)
        return [y, t, mask, torch.ops.robustfast.affine_relu_backward(d_y, None, mask, scale, last)]

    threads = torch.get_num_threads()
    alone = run()
    torch.set_num_threads(4)
    try:
        together = run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# Launches.


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
    from robustfast.kernels import affine_relu as kernels

    x, residual = images(2, 2, 8, 4, 4, last=True)
    with (
        use_backend("triton"),
        counted(monkeypatch, kernels, "_forward_kernel", "_backward_kernel") as launches,
    ):
        y, t = affine_relu(x.requires_grad_(), *tables(8), residual=residual, keep_sum=True)
        torch.autograd.grad((y, t), x, (y.detach(), t.detach()))
    assert launches == {"_forward_kernel": 1, "_backward_kernel": 1}


GPU_SHAPES = [(16, 64, 32, 32), (3, 20, 7, 5), (2, 25, 3, 3), (2, 3, 7, 7), (4, 160, 8, 8), (128, 512, 4, 4)]


# Triton compiles anew for each: the interpreter runs the other cases.
GPU_CASES = [("cuda", shape, dtype) for shape in GPU_SHAPES for dtype in DTYPES]
GPU_CASES += [
    ("triton", shape, dtype) for shape in GPU_SHAPES[:2] for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "shape", "dtype"), GPU_CASES, ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_values_and_gradients_on_a_gpu(
    backend: str, dtype: torch.dtype, last: bool, shape: tuple[int, ...]
) -> None:
    x, residual, d_y, d_t = (t.cuda() for t in images(4, *shape, last=last, dtype=dtype))
    scale, shift = (t.cuda() for t in tables(shape[1], wide(dtype)))

    def late(t: Tensor) -> Tensor:
        """Starts one element into its storage: no vector load is aligned."""
        memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
        return memory.as_strided(t.shape, t.stride(), 1).copy_(t)

    def run(*given: Tensor) -> list[Tensor]:
        x, residual, d_y, d_t, *tables_ = (t.detach() for t in given)
        x.requires_grad_()
        y, t = affine_relu(x, *tables_, residual=residual, keep_sum=True)
        alone = affine_relu(x, None, tables_[1])
        return [
            y, t, *torch.autograd.grad((y, t), x, (d_y, d_t)), alone, *torch.autograd.grad(alone, x, d_y)
        ]  # fmt: skip

    sample = Sample(str(shape), (x, residual, d_y, d_t, scale, shift))
    assert_agrees(run, sample, results(run, backend, *sample.args))
    if backend == "cuda":
        ours = results(run, backend, *map(late, sample.args))
        for a, b in zip(ours, results(run, backend, *sample.args), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [*GPU_SHAPES, (1, 3, 1, 3), (1, 4, 3, 1)], ids=str)
def test_bits_on_a_gpu(dtype: torch.dtype, last: bool, shape: tuple[int, ...]) -> None:
    """All of them, those behind the last element too."""
    (x,) = (t.cuda() for t in images(1, *shape, last=last, dtype=dtype))
    scale, shift = (t.cuda() for t in tables(shape[1], wide(dtype)))
    ours, theirs = (
        low_level(name).affine_relu(x, None, scale, shift, False, True)[2] for name in ("cuda", "reference")
    )
    assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("last", [False, True])
def test_one_kernel_each_way_on_a_gpu(backend: str, last: bool) -> None:
    ops = low_level(backend)
    x, residual, d_y, d_t = (t.cuda() for t in images(4, 8, 64, 8, 8, last=last, dtype=torch.bfloat16))
    scale, shift = (t.cuda() for t in tables(64))

    def both() -> None:
        mask = ops.affine_relu(x, residual, scale, shift, True, True)[2]
        ops.affine_relu_backward(d_y, d_t, mask, scale, last)

    both()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        both()
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 2, kernels


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
def test_fits_into_a_graph(backend: str) -> None:
    x, residual, d_y = (t.cuda() for t in images(3, 8, 64, 8, 8, last=True, dtype=torch.bfloat16))
    scale, shift = (t.cuda() for t in tables(64))
    x.requires_grad_()

    def both() -> tuple[Tensor, Tensor]:
        y, t = affine_relu(x, scale, shift, residual=residual, keep_sum=True)
        return y, torch.autograd.grad((y, t), x, (d_y, d_y))[0]

    with use_backend(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            both()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = both()
        with torch.no_grad():
            x.copy_(-x)
            shift.neg_()
        graph.replay()
        torch.cuda.synchronize()
        for ours, eager in zip(captured, both(), strict=True):
            assert torch.equal(ours, eager)


# Errors.

X = torch.zeros(2, 3, 4, 4)
GOOD = {"x": X, "scale": torch.ones(3), "shift": torch.zeros(3), "residual": X, "keep_sum": True}
WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "x is list, expected a tensor": (TypeError, {"x": [0.0]}),
    "shift is NoneType, expected a tensor": (TypeError, {"shift": None}),
    "scale is float, expected a tensor": (TypeError, {"scale": 1.0}),
    "x is torch.int64, expected float32, float64, bfloat16 or float16": (TypeError, {"x": X.long()}),
    r"x has shape \(3,\), expected \[B, C, ...\]": (ValueError, {"x": torch.zeros(3)}),
    r"scale has shape \(2,\), expected \(3,\) for x \(2, 3, 4, 4\)": (ValueError, {"scale": torch.ones(2)}),
    r"shift has shape \(1, 3, 1, 1\), expected \(3,\)": (ValueError, {"shift": torch.ones(1, 3, 1, 1)}),
    r"residual has shape \(1, 3, 4, 4\), expected \(2, 3, 4, 4\)": (ValueError, {"residual": X[:1]}),
    "residual is torch.bfloat16, expected torch.float32": (TypeError, {"residual": X.bfloat16()}),
    "scale is torch.bfloat16, expected torch.float32 for x in torch.float32": (
        TypeError,
        {"scale": torch.ones(3).bfloat16()},
    ),
    "shift is torch.float32, expected torch.float64 for x in torch.float64": (
        TypeError,
        {"x": X.double(), "scale": None, "residual": X.double()},
    ),
    "shift is on meta, expected the device of x, cpu": (ValueError, {"shift": torch.zeros(3, device="meta")}),
    "scale requires a gradient": (ValueError, {"scale": torch.ones(3, requires_grad=True)}),
    r"shift requires a gradient, .*: shift.detach\(\)": (
        ValueError,
        {"shift": torch.ones(3, requires_grad=True)},
    ),
    "keep_sum without a residual": (ValueError, {"residual": None}),
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_say_what_came_and_what_was_expected(message: str) -> None:
    error, wrong = WRONG[message]
    with pytest.raises(error, match="affine_relu: " + message):
        affine_relu(**{**GOOD, **wrong})


def test_parameters_are_welcome_where_no_gradient_is_recorded() -> None:
    scale, shift = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        assert torch.equal(affine_relu(X, scale, shift), X + 1)


def test_samples_know_both_layouts_and_every_dtype() -> None:
    samples = list(OPS["affine_relu"].samples(torch.device("cpu")))
    assert {s.args[0].dtype for s in samples} == set(DTYPES)
    assert {reference.is_channels_last(s.args[0]) for s in samples} == {False, True}
