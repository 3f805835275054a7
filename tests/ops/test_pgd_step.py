from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from agreement import assert_agrees, results
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustfast import use_backend
from robustfast.ops import backends, pgd_step
from robustfast.ops.backend import Sample
from robustfast.ops.pgd_step import STEPS

RULES = [
    ("linf", "sign"),
    ("linf", "grad"),
    ("l2", "sign"),
    ("l2", "grad"),
    *(("l1", step) for step in STEPS),
]
MISSING = backends()["pgd_step"]
HERE = [name for name, reason in MISSING.items() if reason is None and name != "cuda"]
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def norm_of(delta: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm(delta.double().flatten(1), ORDER[norm], dim=1)


def images(
    batch: int, seed: int, dtype: torch.dtype = torch.float32, size: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, size, size, generator=generator, dtype=dtype)
    return x.clone(), torch.randn(x.shape, generator=generator, dtype=dtype), x


EPS = [0.0, 1e-4, 8 / 255, 0.3, 1.0]
STEP_SIZES = [-0.5, -2 / 255, 0.0, 1e-6, 2 / 255, 3.0]
SCALES = [0.0, 1e-40, 1e-25, 1.0, 1e30]


def check_ball_and_box(
    backend: str, norm: str, step: str, eps: float, step_size: float, scale: float, seed: int
) -> None:
    x_adv, grad, x = images(3, seed)
    with use_backend(backend):
        for _ in range(2):
            x_adv = pgd_step(x_adv, grad * scale, x, step_size=step_size, eps=eps, norm=norm, step=step)
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
@pytest.mark.parametrize(("norm", "step"), RULES)
@given(
    eps=st.sampled_from(EPS),
    step_size=st.sampled_from(STEP_SIZES),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 1000),
)
def test_stays_in_ball_and_box(
    backend: str, norm: str, step: str, eps: float, step_size: float, scale: float, seed: int
) -> None:
    check_ball_and_box(backend, norm, step, eps, step_size, scale, seed)


@pytest.mark.skipif(bool(MISSING["triton"]), reason=f"{MISSING['triton']}")
@pytest.mark.parametrize(("norm", "step"), RULES)
def test_triton_stays_in_ball_and_box(norm: str, step: str) -> None:
    # The interpreter takes up to half a second a step: each value once, instead of a hundred draws.
    for i in range(len(STEP_SIZES)):
        check_ball_and_box(
            "triton", norm, step, EPS[i % len(EPS)], STEP_SIZES[i], SCALES[-i % len(SCALES)], i
        )


@pytest.mark.parametrize("size", [5, 40])  # small samples are held in registers, those of 4800 are not
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "step"), RULES)
def test_hostile_gradients(backend: str, norm: str, step: str, size: int) -> None:
    x_adv, grad, x = images(5, 0, size=size)
    grad[0] = 0
    grad[1, 0, 0, 0] = torch.nan
    grad[2, 0, 0, 0] = torch.inf
    grad[3] = torch.nan
    # The smallest subnormals: their squares are zero in float32, their direction is not.
    grad[4] = grad[4].sign() * 2**-149
    with use_backend(backend):
        out = pgd_step(x_adv, grad, x, step_size=0.01, eps=1.0, norm=norm, step=step, q=0.1)
    assert out.isfinite().all()
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[3], x[3])
    assert out[1, 0, 0, 0] == x[1, 0, 0, 0]
    assert not torch.equal(out[1], x[1])
    assert not torch.equal(out[4], x[4])
    if step == "sign":
        assert out[2, 0, 0, 0] > x[2, 0, 0, 0] or x[2, 0, 0, 0] == 1
    else:
        assert torch.equal(out[2], x[2])


@pytest.mark.parametrize("backend", HERE)
def test_hand_computed(backend: str) -> None:
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    grad = torch.tensor([[3.0, -4.0, 0.0, 0.0]], dtype=torch.float64)

    def step(**rule: object) -> list[float]:
        with use_backend(backend):
            return pgd_step(x.clone(), grad, x, **rule)[0].tolist()  # type: ignore[arg-type]

    assert step(step_size=0.1, eps=0.05) == pytest.approx([0.55, 0.45, 0.5, 0.5])
    assert step(step_size=-0.1, eps=0.3) == pytest.approx([0.4, 0.6, 0.5, 0.5])
    assert step(step_size=0.1, eps=1.0, norm="l2") == pytest.approx([0.56, 0.42, 0.5, 0.5])
    assert step(step_size=0.1, eps=0.05, norm="l2") == pytest.approx([0.53, 0.46, 0.5, 0.5])
    assert step(step_size=0.7, eps=9.0, norm="l1", step="grad") == pytest.approx([0.8, 0.1, 0.5, 0.5])
    # |d| = (.3, .4), eps = .3: tau = .2, so (.1, .2).
    assert step(step_size=0.7, eps=0.3, norm="l1", step="grad") == pytest.approx([0.6, 0.3, 0.5, 0.5])
    assert step(step_size=0.2, eps=9.0, norm="l1", step="topq", q=0.25) == pytest.approx([0.5, 0.3, 0.5, 0.5])
    assert step(step_size=0.2, eps=9.0, norm="l1", step="topq", q=0.5) == pytest.approx([0.6, 0.4, 0.5, 0.5])
    assert step(step_size=0.2, eps=9.0, norm="l1", step="topq", q=1.0) == pytest.approx([0.6, 0.4, 0.5, 0.5])


@pytest.mark.parametrize("backend", HERE)
def test_topq_moves_all_that_tie(backend: str) -> None:
    x = torch.full((1, 6), 0.5)
    grad = torch.tensor([[2.0, -1.0, 1.0, 1.0, 0.5, 0.0]])
    with use_backend(backend):
        out = pgd_step(x, grad, x, step_size=0.4, eps=9.0, norm="l1", step="topq", q=2 / 6)
    torch.testing.assert_close(out - x, torch.tensor([[0.1, -0.1, 0.1, 0.1, 0.0, 0.0]]))


@given(seed=st.integers(0, 10_000), eps=st.floats(0.01, 5.0))
def test_l1_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    """Against the definition: no point of the ball lies nearer (variational inequality)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 20, dtype=torch.float64)
    far = torch.randn(1, 20, generator=generator, dtype=torch.float64)
    near = pgd_step(far, torch.zeros_like(x), x, step_size=0.0, eps=eps, norm="l1", bounds=(-99.0, 99.0))
    corners = torch.cat([eps * torch.eye(20, dtype=torch.float64), -eps * torch.eye(20, dtype=torch.float64)])
    assert norm_of(near, "l1") <= eps * (1 + 1e-12)
    assert ((corners - near) @ (far - near).T).max() <= 1e-9
    if norm_of(far, "l1") <= eps:
        assert torch.equal(near, far)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "step"), RULES)
def test_per_sample_sizes_equal_one_sample_at_a_time(backend: str, norm: str, step: str) -> None:
    x_adv, grad, x = images(4, 7)
    sizes, radii = torch.tensor([0.1, -0.2, 0.0, 0.3]), torch.tensor([0.05, 0.5, 0.1, 0.0])
    with use_backend(backend):
        together = pgd_step(x_adv, grad, x, step_size=sizes, eps=radii, norm=norm, step=step)
        alone = [
            pgd_step(
                *(t[i : i + 1] for t in (x_adv, grad, x)),
                step_size=sizes[i],
                eps=radii[i],
                norm=norm,
                step=step,
            )
            for i in range(4)
        ]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "step"), RULES)
def test_out_may_be_the_input_or_a_view(backend: str, norm: str, step: str) -> None:
    x_adv, grad, x = images(4, 3)
    rule = {"step_size": 0.1, "eps": 0.2, "norm": norm, "step": step}
    with use_backend(backend):
        expected = pgd_step(x_adv, grad, x, **rule)
        inplace = x_adv.clone()
        assert pgd_step(inplace, grad, x, out=inplace, **rule) is inplace
        assert torch.equal(inplace, expected)
        # Sentinels on both sides, at every alignment; then every second sample of a wider batch.
        for start in range(5):
            buffer = torch.full((x.numel() + 8,), 42.0)
            view = buffer[start : start + x.numel()].view(x.shape)
            pgd_step(x_adv, grad, x, out=view, **rule)
            assert torch.equal(view, expected)
            assert (buffer[:start] == 42).all()
            assert (buffer[start + x.numel() :] == 42).all()
        wide = torch.full((8, 3, 5, 5), 42.0)
        pgd_step(x_adv, grad, x, out=wide[::2], **rule)
        assert torch.equal(wide[::2], expected)
        assert (wide[1::2] == 42).all()


def test_one_graph_serves_every_step_size() -> None:
    torch._dynamo.reset()
    x_adv, grad, x = images(2, 0)
    compiled = torch.compile(pgd_step, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (0.1, 0.02, 0.003):
            sizes = {"step_size": torch.tensor(size), "eps": torch.tensor(3 * size)}
            assert torch.equal(compiled(x_adv, grad, x, **sizes), pgd_step(x_adv, grad, x, **sizes))


WRONG = {
    "x is torch.bfloat16.*leave the ball": {"x": torch.zeros(2, 3).bfloat16()},
    "grad is torch.int64": {"grad": torch.zeros(2, 3, dtype=torch.int64)},
    "grad is torch.float64": {"grad": torch.zeros(2, 3, dtype=torch.float64)},
    "x_adv is torch.float64": {"x_adv": torch.zeros(2, 3, dtype=torch.float64)},
    r"grad has shape \(3, 2\), expected that of x, \(2, 3\)": {"grad": torch.zeros(3, 2)},
    r"out has shape \(2,\)": {"out": torch.zeros(2)},
    "grad is on meta": {"grad": torch.zeros(2, 3, device="meta")},
    "norm is 'l3', expected one of linf, l2, l1": {"norm": "l3"},
    "step is 'up', expected 'auto' or one of": {"step": "up"},
    "step 'topq' is the l1 rule, norm is 'l2'": {"norm": "l2", "step": "topq"},
    "eps is -0.1, expected a radius >= 0": {"eps": -0.1},
    r"eps is 8, expected pixel units of \[0, 1\]; write 8/255": {"eps": 8},
    r"bounds are \(1.0, 0.0\), expected \(lowest, highest\)": {"bounds": (1.0, 0.0)},
    "q is 0, expected a fraction": {"q": 0},
    "step_size is torch.float64, expected that of x": {"step_size": torch.tensor(0.1, dtype=torch.float64)},
    r"eps has shape \(3,\), expected \(\) or \(2,\)": {"eps": torch.zeros(3)},
    "x is NoneType, expected a tensor": {"x": None},
    "grad is NoneType, expected a tensor": {"grad": None},
    "x_adv is ndarray, expected a tensor": {"x_adv": np.zeros((2, 3), np.float32)},
    "out is list, expected a tensor": {"out": [0.0]},
    r"x is torch.uint8, expected float32 or float64 pixels in \[0, 1\]: divide by 255$": {
        "x": torch.zeros(2, 3, dtype=torch.uint8)
    },
    r"x is torch.int64, expected float32 or float64 pixels in \[0, 1\]$": {
        "x": torch.zeros(2, 3, dtype=torch.int64)
    },
    r"out of shape \(2, 3\) is expanded \(strides \(0, 1\)\)": {"out": torch.zeros(3).expand(2, 3)},
    r"eps is '8/255' \(str\), expected a number or a tensor": {"eps": "8/255"},
    r"step_size is None \(NoneType\), expected a number or a tensor": {"step_size": None},
    "eps is nan, expected a finite number": {"eps": float("nan")},
    "eps is inf, expected a finite number": {"eps": float("inf"), "norm": "l2"},
    "step_size is nan, expected a finite number": {"step_size": float("nan")},
    "step_size is -inf, expected a finite number": {"step_size": -float("inf")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    arguments = {"step_size": 0.1, "eps": 0.1, **{name: torch.zeros(2, 3) for name in ("x_adv", "grad", "x")}}
    with pytest.raises((TypeError, ValueError), match=f"pgd_step: {message}"):
        pgd_step(**{**arguments, **WRONG[message]})


def test_numbers_of_numpy_are_numbers() -> None:
    x_adv, grad, x = images(2, 0)
    ours = pgd_step(x_adv, grad, x, step_size=np.float32(0.5), eps=np.float64(0.25))
    assert torch.equal(ours, pgd_step(x_adv, grad, x, step_size=0.5, eps=0.25))


def test_linf_trajectory_equals_the_usual_eager_form() -> None:
    """Bit for bit what torchattacks, robust_overfitting and the robustness package compute."""
    x_adv, _, x = images(8, 1)
    eager = x_adv.clone()
    for seed in range(5):
        grad = images(8, seed + 10)[1]
        x_adv = pgd_step(x_adv, grad, x, step_size=2 / 255, eps=4 / 255)
        eager = eager + 2 / 255 * grad.sign()
        eager = torch.clamp(x + torch.clamp(eager - x, min=-4 / 255, max=4 / 255), min=0, max=1)
    assert torch.equal(x_adv, eager)


def test_layouts_stay() -> None:
    x_adv, grad, x = images(4, 5)
    for one, two in itertools.permutations((torch.contiguous_format, torch.channels_last)):
        laid = pgd_step(
            x_adv.contiguous(memory_format=one), grad.contiguous(memory_format=two), x, step_size=0.1, eps=0.2
        )
        assert laid.is_contiguous(memory_format=one)
        assert torch.equal(laid, pgd_step(x_adv, grad, x, step_size=0.1, eps=0.2))


@pytest.mark.parametrize("backend", HERE)
def test_a_half_gradient_in_another_layout_is_read_as_it_is(backend: str) -> None:
    """The copy in the images' layout is of the images' dtype, no longer of the gradient's."""
    x_adv, grad, x = images(4, 5)
    grad = grad.bfloat16()
    rule = {"step_size": 0.1, "eps": 0.2}
    with use_backend(backend):
        other = pgd_step(x_adv, grad.contiguous(memory_format=torch.channels_last), x, **rule)
        assert torch.equal(other, pgd_step(x_adv, grad, x, **rule))


def test_two_phases_find_the_length_of_a_step_that_nearly_undoes_the_last() -> None:
    """|d + s g| is far smaller than its parts: the sums of Triton's first phase cancel."""
    if MISSING["triton"]:
        pytest.skip(f"{MISSING['triton']}")
    _, grad, x = images(2, 6, size=40)
    grad /= norm_of(grad, "l2").reshape(2, 1, 1, 1).float()
    rule = {"step_size": -0.5, "norm": "l2", "bounds": (-9.0, 9.0)}
    for eps in (0.0, 1e-5, 1e-3):
        with use_backend("triton"):
            back = pgd_step(x + (0.5 + 1e-4) * grad, grad, x, eps=eps, **rule)
        rounding = (4 * x.numel() / 2) ** 0.5 * 2**-24
        assert (norm_of(back - x, "l2") <= min(eps, 1e-4) + rounding).all()
        expected = x.double() + min(eps, 1e-4) * grad.double()
        assert (norm_of(back - expected, "l2") <= rounding).all()


def kernels_of(call: Callable[[], object]) -> list[str]:
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("norm", "step"), RULES)
@pytest.mark.parametrize("size", [32, 44, 224])
@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_large_images_on_a_gpu(
    backend: str, norm: str, step: str, size: int, half: torch.dtype | None
) -> None:
    """Sizes that the samples of every op leave out: hundreds of blocks, clusters of as many as there can be."""
    x_adv, grad, x = (t.cuda() for t in images(17, 2, size=size))
    grad = grad if half is None else grad.to(half)
    eps, step_size = {"linf": (8 / 255, 2 / 255), "l2": (0.5, 0.3), "l1": (12.0, 9.0)}[norm]
    rule = {"norm": norm, "step": step, "eps": eps, "step_size": step_size}
    for start in (x_adv, (x + 0.05 * x.roll(1).sub(0.5)).clamp(0, 1)):
        sample = Sample(
            f"{norm}-{step}-{size}", (start, grad, x), rule, exact=norm == "linf" and step == "sign"
        )
        assert_agrees(pgd_step, sample, results(pgd_step, backend, *sample.args, **rule))
        with use_backend(backend):
            twice = [pgd_step(start, grad, x, **rule) for _ in range(2)]
        assert torch.equal(*twice)


@pytest.mark.gpu
@pytest.mark.parametrize(("norm", "step"), [("linf", "sign"), ("l2", "grad"), ("l2", "sign"), ("l1", "topq")])
@pytest.mark.parametrize("size", [32, 224])
def test_one_kernel_on_a_gpu(norm: str, step: str, size: int) -> None:
    x_adv, grad, x = (t.cuda() for t in images(8, 2, size=size))
    out = torch.empty_like(x)
    with use_backend("cuda"):
        names = kernels_of(
            lambda: pgd_step(x_adv, grad, x, step_size=0.1, eps=0.2, norm=norm, step=step, out=out)
        )
    # Without clusters (compute capability 8) a large sample takes two.
    allowed = 2 if norm == "l2" and size == 224 and torch.cuda.get_device_capability()[0] < 9 else 1
    assert 1 <= len(names) <= allowed, names


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("norm", "step"), RULES)
@pytest.mark.parametrize("size", [32, 44, 224])
def test_every_way_fits_into_a_graph_on_a_gpu(backend: str, norm: str, step: str, size: int) -> None:
    x_adv, grad, x = (t.cuda() for t in images(4, 2, size=size))
    rule = {"step_size": 0.1, "eps": 0.2, "norm": norm, "step": step}
    with use_backend(backend):
        expected = pgd_step(x_adv, grad, x, **rule)
        out = torch.empty_like(x)
        pgd_step(x_adv, grad, x, **rule, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            pgd_step(x_adv, grad, x, **rule, out=out)
        out.zero_()
        graph.replay()
    assert torch.equal(out, expected)
