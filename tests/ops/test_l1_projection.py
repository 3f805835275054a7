from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustfast import use_backend
from robustfast.ops import backends, l1_projection

HERE = [name for name, reason in backends()["l1_projection"].items() if reason is None and name != "cuda"]
CENTRE = torch.tensor([[0.5, 0.5, 0.5, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    ("delta", "eps", "expected"),
    [
        # Inside the ball: as it is.
        ([0.1, -0.1, 0.0, 0.2], 0.4, [0.6, 0.4, 0.5, 0.2]),
        # No wall in the way: everything shrinks by tau = 0.1.
        ([0.3, -0.3, 0.05, 0.2], 0.5, [0.7, 0.3, 0.5, 0.1]),
        # The first entry stops at its wall, 0.5 away; the others share what is left, with tau = 0.2.
        ([2.0, 0.3, -0.3, 0.0], 0.7, [1.0, 0.6, 0.4, 0.0]),
        # There is no room below 0: the last entry stays, and the ball holds the rest.
        ([0.2, 0.0, 0.0, -5.0], 0.3, [0.7, 0.5, 0.5, 0.0]),
        # All at their walls before the ball is full.
        ([9.0, -9.0, 9.0, 9.0], 3.0, [1.0, 0.0, 1.0, 1.0]),
        # A ball of one point.
        ([0.2, -0.3, 4.0, 0.1], 0.0, [0.5, 0.5, 0.5, 0.0]),
        # nan counts as the centre's.
        ([float("nan"), 0.3, -0.3, 0.0], 0.2, [0.5, 0.6, 0.4, 0.0]),
        # An infinite entry goes to its wall, or as far as the ball lets it.
        ([float("inf"), 0.3, 0.0, 0.0], 0.4, [0.9, 0.5, 0.5, 0.0]),
    ],
)
def test_by_hand(backend: str, delta: list[float], eps: float, expected: list[float]) -> None:
    with use_backend(backend):
        z = l1_projection(CENTRE + torch.tensor([delta], dtype=torch.float64), CENTRE, eps=eps)
    torch.testing.assert_close(z, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=1e-9)


def nearest_of(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The definition: the point of ball and box that a linear function along x_adv - z cannot improve on."""
    lo, hi = torch.zeros_like(x), (x_adv - x).abs().amax(1, keepdim=True)
    # tau by 200 halvings of its bracket: slow, and nothing but the definition of the dual.
    below, above = lo[:, :1].clone(), hi

    def at(tau: Tensor) -> Tensor:
        d = x_adv - x
        return (x + d.sign() * (d.abs() - tau).clamp(min=0)).clamp(0, 1)

    for _ in range(200):
        middle = (below + above) / 2
        outside = (at(middle) - x).abs().sum(1, keepdim=True) > eps
        below, above = torch.where(outside, middle, below), torch.where(outside, above, middle)
    return torch.where(
        (x_adv.clamp(0, 1) - x).abs().sum(1, keepdim=True) <= eps, at(torch.zeros(())), at(above)
    )


@pytest.mark.parametrize("backend", [name for name in HERE if name != "triton"])
@settings(max_examples=60)
@given(
    n=st.integers(1, 70),
    eps=st.floats(0, 20),
    spread=st.floats(-3, 3),
    tails=st.floats(0, 3),
    walls=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_is_the_nearest_point(
    backend: str, n: int, eps: float, spread: float, tails: float, walls: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, n, generator=generator, dtype=torch.float64)
    x = torch.where(torch.rand(4, n, generator=generator) < walls, draw.round(), draw)
    sizes = 10**spread * (tails * torch.randn(4, n, generator=generator, dtype=torch.float64)).exp()
    x_adv = x + sizes * torch.randn(4, n, generator=generator, dtype=torch.float64)
    with use_backend(backend):
        z = l1_projection(x_adv, x, eps=eps)
    assert (z >= 0).all()
    assert (z <= 1).all()
    assert ((z - x).abs().sum(1) <= eps + 1e-9).all()
    torch.testing.assert_close(z, nearest_of(x_adv, x, eps), rtol=0, atol=1e-9)
    # The variational inequality: no other point of the set lies on x_adv's side of z.
    corner = torch.rand(4, n, generator=generator, dtype=torch.float64)
    other = x + (corner - x) * (eps / (corner - x).abs().sum(1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    slack = 1e-8 * (1 + (x_adv - z).abs().sum(1))
    assert (((x_adv - z) * (other - z)).sum(1) <= slack).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_lies_in_ball_and_box_comes_back_to_the_bit(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 4, 4, generator=generator, dtype=dtype)
    x_adv = (x + torch.randn(x.shape, generator=generator, dtype=dtype) / 100).clamp(0, 1)
    with use_backend(backend):
        assert torch.equal(l1_projection(x_adv, x, eps=2.0), x_adv)
        once = l1_projection(x + 1, x, eps=2.0)
        torch.testing.assert_close(l1_projection(once, x, eps=2.0), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -3e38])
def test_hostile_points_stay_in_ball_and_box(backend: str, value: float) -> None:
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for hostile in (torch.full_like(x, value), torch.where(x > 0.7, value, x + 0.3)):
        with use_backend(backend):
            z = l1_projection(hostile, x, eps=1.5)
        assert ((z >= 0) & (z <= 1)).all()
        assert ((z.double() - x.double()).abs().flatten(1).sum(1) <= 1.5 + 1e-5).all()


@pytest.mark.parametrize("backend", HERE)
def test_bounds_and_radii_of_each_sample(backend: str) -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    radii = torch.tensor([0.0, 2.0, 100.0], dtype=torch.float64)
    with use_backend(backend):
        z = l1_projection(x + 5, x, eps=radii, bounds=(-1, 3))
    assert z[:, 0].tolist() == [0, 0.5, 3]


@pytest.mark.parametrize("backend", HERE)
def test_in_place(backend: str) -> None:
    x = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with use_backend(backend):
        x_adv = x + 0.5
        expected = l1_projection(x_adv, x, eps=1.5)
        assert l1_projection(x_adv, x, eps=1.5, out=x_adv) is x_adv
    assert torch.equal(x_adv, expected)


def test_threads_do_not_change_a_bit() -> None:
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    alone = l1_projection(1 - x, x, eps=12.0)
    torch.set_num_threads(4)
    try:
        assert torch.equal(l1_projection(1 - x, x, eps=12.0), alone)
    finally:
        torch.set_num_threads(threads)


def test_triton_launches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    if "triton" not in HERE:
        pytest.skip("triton cannot run here")
    from robustfast.kernels import l1_projection as kernels

    launches: Counter[str] = Counter()
    kernel = kernels._kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launches["_kernel"] += 1
            return kernel[grid]

    monkeypatch.setattr(kernels, "_kernel", Counted())
    with use_backend("triton"):
        l1_projection(torch.ones(2, 8), torch.zeros(2, 8), eps=1.0)
    assert launches == {"_kernel": 1}


X = torch.rand(4, 3)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": X.bfloat16()}, TypeError, "x is torch.bfloat16, expected float32 or float64"),
        ({"x_adv": X.double()}, TypeError, "x_adv is torch.float64, expected that of x, torch.float32"),
        ({"x_adv": X[:2]}, ValueError, r"x_adv has shape \(2, 3\), expected that of x, \(4, 3\)"),
        ({"x_adv": X.to("meta")}, ValueError, "x_adv is on meta, expected the device of x, cpu"),
        ({"x_adv": None}, TypeError, "x_adv is NoneType, expected a tensor"),
        ({"x": X[0], "x_adv": X[0]}, ValueError, r"x has shape \(3,\), expected \[B, ...\]"),
        ({"eps": -1.0}, ValueError, "eps is -1.0, expected a radius >= 0"),
        ({"eps": torch.ones(3)}, ValueError, r"eps has shape \(3,\), expected \(\) or \(4,\)"),
        ({"bounds": (1.0, 0.0)}, ValueError, r"bounds are \(1.0, 0.0\)"),
        ({"out": X[:1].expand(4, 3)}, ValueError, "is expanded"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"x_adv": X, "x": X, "eps": 1.0, **wrong}
    with pytest.raises(error, match="l1_projection: .*" + message):
        l1_projection(arguments.pop("x_adv"), arguments.pop("x"), **arguments)
