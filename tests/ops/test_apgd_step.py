from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustfast import use_backend
from robustfast.ops import apgd_step, backends
from robustfast.ops.apgd_step import NORMS

MISSING = backends()["apgd_step"]
HERE = [name for name, reason in MISSING.items() if reason is None and name != "cuda"]
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def norm_of(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.double().flatten(1), ORDER[norm], dim=1)


def images(
    batch: int, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two iterates near x, a gradient and x."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, 5, 5, generator=generator, dtype=dtype)
    x_adv, x_old = (
        (x + 0.1 * (torch.rand(x.shape, generator=generator, dtype=dtype) - 0.5)).clamp(0, 1)
        for _ in range(2)
    )
    return x_adv, x_old, torch.randn(x.shape, generator=generator, dtype=dtype), x


def published(
    x_adv: Tensor, x_old: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, eps: float, a: float, norm: str
) -> Tensor:
    """The update of AutoAttack's APGD in its own order of operations; step sizes [B, 1, 1, 1]."""
    lo, hi = x - eps, x + eps
    last = x_adv - x_old

    def length(t: Tensor) -> Tensor:
        return (t**2).sum(dim=(1, 2, 3), keepdim=True).sqrt()

    def project(point: Tensor) -> Tensor:
        if norm == "linf":
            return torch.clamp(torch.min(torch.max(point, lo), hi), 0.0, 1.0)
        delta = point - x
        reach = torch.min(eps * torch.ones_like(x), length(delta))
        return torch.clamp(x + delta / (length(delta) + 1e-12) * reach, 0.0, 1.0)

    if norm == "linf":
        stepped = project(x_adv + step_size * torch.sign(grad))
    else:
        stepped = project(x_adv + step_size * (grad / (length(grad) + 1e-12)))
    return project(x_adv + (stepped - x_adv) * a + last * (1 - a))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trajectory_is_the_published_one(norm: str, dtype: torch.dtype, backend: str) -> None:
    """Under linf bit for bit, with two buffers that take turns and a step size for each sample."""
    x_adv, _, _, x = images(6, 1, dtype)
    eps = {"linf": 8 / 255, "l2": 0.7}[norm]
    step_size = 2 * eps * torch.tensor([1, 1, 0.5, 0.5, 0.25, 0.125], dtype=dtype)
    x_adv = x if norm == "l2" else torch.min(torch.max(x_adv, x - eps), x + eps)
    ours, ours_old, theirs, theirs_old = x_adv.clone(), x_adv.clone(), x_adv, x_adv
    with use_backend(backend):
        for step in range(6):
            grad = images(6, step + 10, dtype)[2]
            a = 0.75 if step else 1.0
            rule = {"step_size": step_size, "eps": eps, "momentum": a, "norm": norm}
            new = apgd_step(ours, ours_old, grad, x, **rule, out=ours_old)
            assert new is ours_old
            ours, ours_old = new, ours
            wanted = published(theirs, theirs_old, grad, x, step_size.view(-1, 1, 1, 1), eps, a, norm)
            theirs, theirs_old = wanted, theirs
    if norm == "linf":
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("backend", HERE)
def test_hand_computed(backend: str) -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    grad = torch.tensor([[3.0, -4.0, 0.0, 0.0]], dtype=torch.float64)
    x_adv = torch.tensor([[0.52, 0.5, 0.5, 0.5]], dtype=torch.float64)

    def step(**rule: object) -> list[float]:
        with use_backend(backend):
            return apgd_step(x_adv, x, grad, x, **rule)[0].tolist()  # type: ignore[arg-type]

    # z = (.62, .4, .5, .5): three quarters of the way there, and a quarter of (.02, 0, 0, 0).
    assert step(step_size=0.1, eps=0.3) == pytest.approx([0.6, 0.425, 0.5, 0.5])
    # z = (.55, .45): half of the way, and half of (.02, 0).
    assert step(step_size=0.1, eps=0.05, momentum=0.5) == pytest.approx([0.545, 0.475, 0.5, 0.5])
    assert step(step_size=0.1, eps=0.05, momentum=1.0) == pytest.approx([0.55, 0.45, 0.5, 0.5])
    assert step(step_size=-0.1, eps=0.3, momentum=1.0) == pytest.approx([0.42, 0.6, 0.5, 0.5])
    # z = (.58, .42).
    assert step(step_size=0.1, eps=1.0, norm="l2") == pytest.approx([0.57, 0.44, 0.5, 0.5])
    # z lies in the direction (.08, -.08), .05 away; then .53036 - .52 = .0103, mixed (.5328, .47348), and back.
    z = 0.05 / math.sqrt(2)
    mixed = [0.02 + (z - 0.02) * 0.75 + 0.005, -z * 0.75]
    length = math.hypot(*mixed)
    wanted = [0.5 + part * min(1, 0.05 / length) for part in mixed]
    assert step(step_size=0.1, eps=0.05, norm="l2") == pytest.approx([*wanted, 0.5, 0.5])
    # l1: the largest entry alone, two of them, all that are not zero; the image before is not looked at.
    assert step(step_size=0.2, eps=9.0, norm="l1", sparsity=0.0) == pytest.approx([0.52, 0.3, 0.5, 0.5])
    assert step(step_size=0.2, eps=9.0, norm="l1", sparsity=0.5) == pytest.approx([0.62, 0.4, 0.5, 0.5])
    assert step(step_size=0.2, eps=9.0, norm="l1", sparsity=1.0) == pytest.approx([0.62, 0.4, 0.5, 0.5])
    # |d| = (.12, .1), eps = .12: tau = .05.
    assert step(step_size=0.2, eps=0.12, norm="l1", sparsity=0.5) == pytest.approx([0.57, 0.45, 0.5, 0.5])


@pytest.mark.parametrize("backend", HERE)
def test_l1_moves_as_many_entries_as_the_published_code(backend: str) -> None:
    """The entry at floor((1 - sparsity) n) of the sorted gradient, in float32, and all as large."""
    n = 75
    # Fractions as the check leaves them, m / n / 1.5; the interpreter is slow.
    shares = [m / n / 1.5 for m in torch.arange(0.0, n + 1, 20 if backend == "triton" else 1)]
    share = torch.stack([*shares, torch.tensor(0.2), torch.tensor(-1.0), torch.tensor(2.0)])
    index = torch.clamp((1.0 - share) * n, min=0, max=n - 1).long()
    for dtype in (torch.float32, torch.float64):
        x = torch.full((len(share), n), 0.5, dtype=dtype)
        grad = torch.arange(1, n + 1, dtype=dtype).expand(len(share), n)
        rule = {"step_size": 0.1, "eps": 9.0, "norm": "l1", "sparsity": share.to(dtype)}
        with use_backend(backend):
            assert torch.equal((apgd_step(x, x, grad, x, **rule) != x).sum(1), n - index)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_hostile_gradients(backend: str, norm: str) -> None:
    x_adv, _, grad, x = images(6, 0)
    grad[0] = 0
    grad[1, 0, 0, 0] = torch.nan
    grad[2, 0, 0, 0] = torch.inf
    grad[3] = torch.nan
    # The smallest subnormals: their squares are zero in float32.
    grad[4] = grad[4].sign() * 2**-149
    grad[5, 0] = -torch.inf
    rule = {"step_size": 0.01, "eps": 1.0 if norm == "linf" else 40.0, "norm": norm}
    with use_backend(backend):
        out = apgd_step(x, x, grad, x, **rule, momentum=1.0)
        drift = apgd_step(x_adv, x, grad, x, **rule)
    assert out.isfinite().all()
    assert drift.isfinite().all()
    for still in (0, 3):
        assert torch.equal(out[still], x[still])
        # No step, and momentum alone.
        last = 0 if norm == "l1" else 0.25
        torch.testing.assert_close(drift[still], (x_adv + last * (x_adv - x)).clamp(0, 1)[still])
    assert not torch.equal(out[1], x[1])
    assert out[1, 0, 0, 0] == x[1, 0, 0, 0]
    if norm == "linf":
        assert out[2, 0, 0, 0] > x[2, 0, 0, 0]
        assert (out[5, 0] < x[5, 0]).all()
        assert not torch.equal(out[4], x[4])
    else:
        assert torch.equal(out[2], x[2])
        assert torch.equal(out[5], x[5])


EPS = [0.0, 1e-4, 8 / 255, 0.3, 1.0]
STEP_SIZES = [-0.5, -2 / 255, 0.0, 1e-6, 2 / 255, 3.0]
SCALES = [0.0, 1e-40, 1e-25, 1.0, 1e30]
MOMENTA = [0.0, 0.75, 1.0]


def check_ball_and_box(
    backend: str, norm: str, eps: float, step_size: float, scale: float, seed: int, batch: int = 3
) -> None:
    _, _, grad, x = images(batch, seed)
    x_adv = x_old = x
    with use_backend(backend):
        for i in range(3):
            rule = {"step_size": step_size, "eps": eps, "momentum": MOMENTA[(seed + i) % 3], "norm": norm}
            x_adv, x_old = apgd_step(x_adv, x_old, grad * scale * (-1) ** i, x, **rule), x_adv
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    # x + delta rounds once more: an ulp of a pixel in [0, 1] is 2^-24, times what the norm makes of 75 of them.
    rounding = {"linf": 1, "l2": 75**0.5, "l1": 75}[norm] * 2**-24
    assert (norm_of(x_adv - x, norm) <= eps * (1 + 1e-6) + rounding).all()


@pytest.mark.parametrize(
    "backend",
    [
        "reference",
        pytest.param("cpp", marks=pytest.mark.skipif(bool(MISSING["cpp"]), reason=f"{MISSING['cpp']}")),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
@given(
    eps=st.sampled_from(EPS),
    step_size=st.sampled_from(STEP_SIZES),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 1000),
)
def test_stays_in_ball_and_box(
    backend: str, norm: str, eps: float, step_size: float, scale: float, seed: int
) -> None:
    check_ball_and_box(backend, norm, eps, step_size, scale, seed)


@pytest.mark.skipif(bool(MISSING["triton"]), reason=f"{MISSING['triton']}")
@pytest.mark.parametrize("norm", NORMS)
def test_triton_stays_in_ball_and_box(norm: str) -> None:
    # The interpreter is slow: each value once, instead of a hundred draws.
    for i in range(len(STEP_SIZES)):
        check_ball_and_box("triton", norm, EPS[i % len(EPS)], STEP_SIZES[i], SCALES[-i % len(SCALES)], i, 1)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_per_sample_sizes_equal_one_sample_at_a_time(backend: str, norm: str) -> None:
    x_adv, x_old, grad, x = images(4, 7)
    sizes = {
        "step_size": torch.tensor([0.1, -0.2, 0.0, 0.3]),
        "eps": torch.tensor([0.05, 0.5, 0.1, 0.0]),
        "momentum": torch.tensor([0.75, 1.0, 0.5, 0.0]),
    }
    if norm == "l1":
        sizes["sparsity"] = torch.tensor([0.2, 0.01, 1.0, 0.5])
    with use_backend(backend):
        together = apgd_step(x_adv, x_old, grad, x, norm=norm, **sizes)
        alone = [
            apgd_step(
                *(t[i : i + 1] for t in (x_adv, x_old, grad, x)),
                norm=norm,
                **{name: size[i] for name, size in sizes.items()},
            )
            for i in range(4)
        ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_out_may_be_an_input_or_a_view(backend: str, norm: str) -> None:
    x_adv, x_old, grad, x = images(2, 3)
    rule = {"step_size": 0.1, "eps": 0.2, "norm": norm}
    with use_backend(backend):
        expected = apgd_step(x_adv, x_old, grad, x, **rule)
        for name in ("x_adv", "x_old"):
            inputs = {"x_adv": x_adv.clone(), "x_old": x_old.clone(), "grad": grad, "x": x}
            assert apgd_step(**inputs, out=inputs[name], **rule) is inputs[name]
            assert torch.equal(inputs[name], expected)
            other = {"x_adv": "x_old", "x_old": "x_adv"}[name]
            assert torch.equal(inputs[other], {"x_adv": x_adv, "x_old": x_old}[other])
        # Sentinels on both sides, at other alignments; then every second sample of a wider batch.
        for start in range(1, 4):
            buffer = torch.full((x.numel() + 8,), 42.0)
            view = buffer[start : start + x.numel()].view(x.shape)
            apgd_step(x_adv, x_old, grad, x, out=view, **rule)
            assert torch.equal(view, expected)
            assert (buffer[:start] == 42).all()
            assert (buffer[start + x.numel() :] == 42).all()
        wide = torch.full((4, 3, 5, 5), 42.0)
        apgd_step(x_adv, x_old, grad, x, out=wide[::2], **rule)
        assert torch.equal(wide[::2], expected)
        assert (wide[1::2] == 42).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_layouts_stay_and_may_differ(backend: str, norm: str) -> None:
    x_adv, x_old, grad, x = images(4, 5)
    rule = {"step_size": 0.1, "eps": 0.2, "norm": norm}
    with use_backend(backend):
        expected = apgd_step(x_adv, x_old, grad.bfloat16(), x, **rule)
        for one, two in [
            (torch.contiguous_format, torch.channels_last),
            (torch.channels_last, torch.contiguous_format),
        ]:
            laid = apgd_step(
                x_adv.contiguous(memory_format=one),
                x_old.contiguous(memory_format=two),
                grad.bfloat16().contiguous(memory_format=two),
                x,
                **rule,
            )
            assert laid.is_contiguous(memory_format=one)
            torch.testing.assert_close(laid, expected, rtol=0, atol=0 if norm == "linf" else 1e-6)


def test_one_graph_serves_every_size() -> None:
    torch._dynamo.reset()
    inputs = images(2, 0)
    compiled = torch.compile(apgd_step, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (0.1, 0.02, 0.003):
            sizes = {
                "step_size": torch.tensor(size),
                "eps": torch.tensor(3 * size),
                "momentum": torch.tensor(1 - size),
            }
            assert torch.equal(compiled(*inputs, **sizes), apgd_step(*inputs, **sizes))


WRONG = {
    "x is torch.bfloat16.*leave the ball": {"x": torch.zeros(2, 3).bfloat16()},
    "grad is torch.int64": {"grad": torch.zeros(2, 3, dtype=torch.int64)},
    "grad is torch.float64": {"grad": torch.zeros(2, 3, dtype=torch.float64)},
    "x_old is torch.float64": {"x_old": torch.zeros(2, 3, dtype=torch.float64)},
    r"x_adv has shape \(3, 2\), expected that of x, \(2, 3\)": {"x_adv": torch.zeros(3, 2)},
    r"out has shape \(2,\)": {"out": torch.zeros(2)},
    "x_old is on meta": {"x_old": torch.zeros(2, 3, device="meta")},
    "norm is 'l3', expected one of linf, l2, l1": {"norm": "l3"},
    "sparsity belongs to the l1 step, norm is 'l2'": {"norm": "l2", "sparsity": 0.1},
    "eps is -0.1, expected a radius >= 0": {"eps": -0.1},
    r"eps is 8, expected pixel units of \[0, 1\]; write 8/255": {"eps": 8},
    r"bounds are \(1.0, 0.0\), expected \(lowest, highest\)": {"bounds": (1.0, 0.0)},
    "momentum is torch.float64, expected that of x": {"momentum": torch.tensor(0.1, dtype=torch.float64)},
    r"sparsity has shape \(3,\), expected \(\) or \(2,\)": {"norm": "l1", "sparsity": torch.zeros(3)},
    "x is NoneType, expected a tensor": {"x": None},
    "x_old is ndarray, expected a tensor": {"x_old": np.zeros((2, 3), np.float32)},
    r"out of shape \(2, 3\) is expanded \(strides \(0, 1\)\)": {"out": torch.zeros(3).expand(2, 3)},
    "momentum is nan, expected a finite number": {"momentum": float("nan")},
    "step_size is None": {"step_size": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    tensors = {name: torch.zeros(2, 3) for name in ("x_adv", "x_old", "grad", "x")}
    with pytest.raises((TypeError, ValueError), match=f"apgd_step: {message}"):
        apgd_step(**{"step_size": 0.1, "eps": 0.1, **tensors, **WRONG[message]})


def test_a_norm_needs_samples() -> None:
    flat = torch.zeros(3)
    with pytest.raises(ValueError, match=r"expected \[B, ...\] to take the l2 norm"):
        apgd_step(flat, flat, flat, flat, step_size=0.1, eps=0.1, norm="l2")


@pytest.mark.parametrize("backend", HERE)
def test_a_gradient_of_1e_12_steps_half_as_far(backend: str) -> None:
    """The l2 norm of a gradient has 1e-12 added, as in the authors' code: noise of 1e-16 is not walked along."""
    x = torch.full((2, 4), 0.5, dtype=torch.float64)
    grad = torch.tensor([[1e-12, 0, 0, 0], [1e-16, 0, 0, 0]], dtype=torch.float64)
    with use_backend(backend):
        out = apgd_step(x, x, grad, x, step_size=0.2, eps=1.0, momentum=1.0, norm="l2")
    assert out[:, 0].tolist() == pytest.approx([0.6, 0.5 + 0.2 * 1e-4 / (1 + 1e-4)], abs=1e-12)
