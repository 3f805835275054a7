from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustfast import use_backend
from robustfast.ops import backends, fab_projection
from robustfast.ops.fab_projection import NORMS

MISSING = backends()["fab_projection"]
HERE = [name for name, reason in MISSING.items() if reason is None and name != "cuda"]
FAST = [name for name in HERE if name != "triton"]  # its interpreter takes too long for drawn examples


def rows(
    batch: int, seed: int, size: int = 40, share: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, normals with some zeros, and offsets that ask for `share` of what the box allows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, size, generator=generator, dtype=torch.float64)
    x[:, :3] = x[:, :3].round()  # some on the wall
    w = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    w[:, ::5] = 0
    side = torch.randint(0, 2, (batch, 1), generator=generator) * 2 - 1
    reach = (w.abs() * torch.where(w * side > 0, x, 1 - x)).sum(1)
    b = (w * x).sum(1) - side[:, 0] * share * reach
    return x.to(dtype), w.to(dtype), b.to(dtype)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 0.9, 0.999]))
def test_reaches_the_plane_in_the_box_by_the_smallest_step(
    backend: str, norm: str, seed: int, share: float
) -> None:
    """Against the definition: feasible, and by the conditions of Karush, Kuhn and Tucker nothing smaller is."""
    x, w, b = rows(3, seed, share=share)
    with use_backend(backend):
        d = fab_projection(x, w, b, norm=norm)
    assert ((w * (x + d)).sum(1) - b).abs().max() < 1e-12
    assert (x + d).min() >= -1e-15
    assert (x + d).max() <= 1 + 1e-15
    assert not d[w == 0].any()
    side = ((w * x).sum(1) - b).sign()[:, None]
    assert (d * w * side <= 1e-15).all(), "every entry closes the gap"
    room = torch.where(w * side > 0, x, 1 - x)
    free = (d.abs() < room - 1e-12) & (w != 0)
    for step, slope, loose in zip(d.abs(), w.abs(), free, strict=True):
        if norm == "linf":
            assert (step[loose] >= step.max() - 1e-12).all()
        elif norm == "l2":
            ratio = (step / slope)[loose]
            assert ratio.numel() == 0 or ratio.max() - ratio.min() < 1e-11
            assert ((step / slope)[(slope > 0) & ~loose] <= ratio.max() + 1e-11).all()
        elif loose.any():
            assert (slope[step > 1e-12] >= slope[loose].max()).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("share", [0.02, 0.4, 1.3])
def test_equals_torchattacks(backend: str, norm: str, dtype: torch.dtype, share: float) -> None:
    fab = pytest.importorskip("torchattacks.attacks.fab", reason="needs: pip install --no-deps torchattacks")
    x, w, b = rows(6, 3, size=100, share=share, dtype=dtype)
    with use_backend(backend):
        ours = fab_projection(x, w, b, norm=norm)
    theirs = getattr(fab, f"projection_{norm}")(x, w, b)
    torch.testing.assert_close(ours, theirs.to(dtype), rtol=0, atol=1e-12 if dtype == torch.float64 else 3e-6)
    assert (ours.abs().amax(1) > 0.005).all()


@pytest.mark.parametrize("backend", HERE)
def test_hand_computed(backend: str) -> None:
    x = torch.tensor([[0.5, 0.5, 0.9, 0.2]], dtype=torch.float64)
    w = torch.tensor([[2.0, -1.0, 0.0, 1.0]], dtype=torch.float64)  # <w, x> = 0.7

    def step(b: float, norm: str, **more: Any) -> list[float]:
        with use_backend(backend):
            return fab_projection(x, w, torch.tensor([b], dtype=torch.float64), norm=norm, **more)[0].tolist()

    assert step(0.7, "linf") == [0, 0, 0, 0]
    assert step(0.3, "linf") == pytest.approx([-0.1, 0.1, 0, -0.1])
    assert step(1.1, "linf") == pytest.approx([0.1, -0.1, 0, 0.1])
    # The last one is at its wall: 3 m + 0.2 = 1.1.
    assert step(-0.4, "linf") == pytest.approx([-0.3, 0.3, 0, -0.2])
    assert step(0.1, "l2") == pytest.approx([-0.2, 0.1, 0, -0.1])
    # m = 0.22 for the first two, the last at its wall.
    assert step(-0.6, "l2") == pytest.approx([-0.44, 0.22, 0, -0.2])
    assert step(0.1, "l1") == pytest.approx([-0.3, 0, 0, 0])
    # The first at its wall; the gap of 0.35 that is left is half of what the two that tie could close.
    assert step(-0.65, "l1") == pytest.approx([-0.5, 0.25, 0, -0.1])
    for norm in NORMS:
        assert step(-9.0, norm) == pytest.approx([-0.5, 0.5, 0, -0.2])
        assert step(9.0, norm) == pytest.approx([0.5, -0.5, 0, 0.8])
        assert step(9.0, norm, bounds=(-1.0, 2.0))[0] == pytest.approx(1.5)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_hostile_rows_stay(backend: str, norm: str) -> None:
    x, w, b = rows(8, 0, dtype=torch.float32)
    w[0] = 0
    w[1, 3] = torch.nan
    w[2, 3] = torch.inf
    w[3] = torch.nan
    b[4] = torch.nan
    b[5] = -torch.inf
    w[6, 7:] = 0
    x[6, :7] = torch.where(w[6, :7] > 0, 0.0, 1.0)  # no room at all
    b[6] = -99.0
    with use_backend(backend):
        d = fab_projection(x, w, b, norm=norm)
        assert d.isfinite().all()
        assert not d[:7].any()
        assert d[7:].any(1).all()
        # Outside the box by a rounding: as on the wall.
        outside = x.clone()
        outside[7][x[7] == 1] = 1 + 2**-23
        torch.testing.assert_close(
            fab_projection(outside, w, b, norm=norm)[7], d[7], rtol=0, atol=1e-5 if norm != "l1" else 1e-4
        )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_the_hyperplane_does_not_matter(backend: str, norm: str) -> None:
    # The published code takes |w| <= 1e-8 for zero under l2 and l1.
    x, w, b = rows(4, 1, dtype=torch.float32)
    with use_backend(backend):
        d = fab_projection(x, w, b, norm=norm)
        for scale in (2.0**-60, 2.0**40):
            assert torch.equal(fab_projection(x, w * scale, b * scale, norm=norm), d)
        assert torch.equal(fab_projection(x, -w, -b, norm=norm), d)


@pytest.mark.parametrize("backend", HERE)
def test_ties_share_alike_in_any_order(backend: str) -> None:
    x = torch.tensor([[0.2, 0.4, 0.6, 0.8]], dtype=torch.float64)
    w, b = torch.ones_like(x), torch.tensor([1.0], dtype=torch.float64)
    with use_backend(backend):
        d = fab_projection(x, w, b, norm="l1")
        torch.testing.assert_close(d, -x / 2, rtol=0, atol=1e-15)
        order = [2, 0, 3, 1]
        torch.testing.assert_close(
            fab_projection(x[:, order], w, b, norm="l1"), d[:, order], rtol=0, atol=1e-15
        )


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", NORMS)
def test_several_points_per_hyperplane(backend: str, norm: str) -> None:
    x, w, b = rows(6, 2, dtype=torch.float32)
    with use_backend(backend):
        together = fab_projection(x, w[:3], b[:3], norm=norm)
        apart = fab_projection(x, w[:3].repeat(2, 1), b[:3].repeat(2), norm=norm)
        rows_of = [(x[i : i + 1], w[i % 3 : i % 3 + 1], b[i % 3 : i % 3 + 1]) for i in range(6)]
        alone = [fab_projection(*row, norm=norm) for row in rows_of]
    assert torch.equal(together, apart)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("norm", NORMS)
def test_out_may_be_the_points_or_a_view(backend: str, norm: str) -> None:
    x, w, b = rows(4, 3, dtype=torch.float32)
    with use_backend(backend):
        expected = fab_projection(x, w, b, norm=norm)
        inplace = x.clone()
        assert fab_projection(inplace, w, b, norm=norm, out=inplace) is inplace
        assert torch.equal(inplace, expected)
        buffer = torch.full((x.numel() + 8,), 42.0)
        view = buffer[3 : 3 + x.numel()].view(x.shape)
        fab_projection(x, w, b, norm=norm, out=view)
        assert torch.equal(view, expected)
        assert (buffer[:3] == 42).all()
        assert (buffer[3 + x.numel() :] == 42).all()
        wide = torch.full((8, 40), 42.0)
        fab_projection(x, w, b, norm=norm, out=wide[::2])
        assert torch.equal(wide[::2], expected)
        assert (wide[1::2] == 42).all()


@pytest.mark.parametrize("norm", NORMS)
def test_layouts_stay(norm: str) -> None:
    x, w, b = rows(4, 5, size=75, dtype=torch.float32)
    x, w = x.view(4, 3, 5, 5), w.view(4, 3, 5, 5)[:2]
    expected = fab_projection(x, w, b[:2], norm=norm)
    for one, two in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
        laid = fab_projection(
            x.contiguous(memory_format=one), w.contiguous(memory_format=two), b[:2], norm=norm
        )
        assert laid.is_contiguous(memory_format=one)
        # Sums of one sample in another order.
        torch.testing.assert_close(laid, expected, rtol=0, atol=1e-6)


WRONG = {
    "x is torch.bfloat16": {"x": torch.zeros(2, 3).bfloat16()},
    "x is NoneType, expected a tensor": {"x": None},
    "w is list, expected a tensor": {"w": [0.0]},
    "w is torch.float64, expected that of x": {"w": torch.zeros(2, 3, dtype=torch.float64)},
    r"w has shape \(2, 4\), expected that of x, \(2, 3\), or a whole fraction": {"w": torch.zeros(2, 4)},
    r"w has shape \(3, 3\)": {"w": torch.zeros(3, 3)},
    r"w has shape \(0, 3\)": {"w": torch.zeros(0, 3), "b": torch.zeros(0)},
    r"b has shape \(3,\), expected \(2,\)": {"b": torch.zeros(3)},
    "b is on meta": {"b": torch.zeros(2, device="meta")},
    r"x has shape \(2,\), expected \[B, ...\]": {"x": torch.zeros(2), "w": torch.zeros(2)},
    "norm is 'l3', expected one of linf, l2, l1": {"norm": "l3"},
    r"bounds are \(1.0, 0.0\), expected \(lowest, highest\)": {"bounds": (1.0, 0.0)},
    r"out has shape \(2,\)": {"out": torch.zeros(2)},
    r"out of shape \(2, 3\) is expanded": {"out": torch.zeros(3).expand(2, 3)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 3), "w": torch.zeros(2, 3), "b": torch.zeros(2)}
    with pytest.raises((TypeError, ValueError), match=f"fab_projection: {message}"):
        fab_projection(**{**arguments, **WRONG[message]})
