from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from robustfast.ops import backends, random_start, use_backend

RULES = [("linf", "ball"), ("l2", "ball"), ("l1", "ball"), ("l2", "pixel")]
HERE = [name for name, reason in backends()["random_start"].items() if reason is None and name != "cuda"]
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
WIDE = (-99.0, 99.0)
# Draws are a function of the seed: a law that holds at this level today holds tomorrow.
LEVEL = 1e-3


def images(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draws(batch: int, n: int, norm: str, law: str = "ball", eps: float = 1.0) -> Tensor:
    """What is added to the images, in float64."""
    return random_start(
        torch.zeros(batch, n, dtype=torch.float64), eps=eps, norm=norm, law=law, seed=7, bounds=WIDE
    )


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Straight from the paper, on Python's integers."""
    for _ in range(10):
        even, odd = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            odd >> 32 ^ counter[1] ^ key[0],
            odd % 2**32,
            even >> 32 ^ counter[3] ^ key[1],
            even % 2**32,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


@pytest.mark.parametrize("backend", HERE)
def test_draws_are_those_of_the_documented_counter(backend: str) -> None:
    seed, numbers = 0x0123456789ABCDEF, [0, 5, 2**40 + 3, 2**63 - 1]
    expected = [
        [
            (
                (philox([e // 4, 0, number % 2**32, number >> 32], [seed % 2**32, seed >> 32])[e % 4] >> 8)
                - 2**23
            )
            / 2**23
            for e in range(3 * 2 * 3)
        ]
        for number in numbers
    ]
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(4, 3, 2, 3, dtype=dtype)
        with use_backend(backend):
            got = random_start(x, eps=1.0, seed=seed, index=torch.tensor(numbers))
            unclipped = random_start(x, eps=1.0, seed=seed, index=torch.tensor(numbers), bounds=WIDE)
        assert unclipped.flatten(1).tolist() == expected
        assert torch.equal(got, unclipped.clamp(0, 1))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "law"), RULES)
def test_a_sample_does_not_depend_on_its_batch(backend: str, norm: str, law: str) -> None:
    x, index = images(6), torch.tensor([9, 2**33, 0, 4, 2**33 + 9, 1])
    rule = {"eps": 0.5, "norm": norm, "law": law, "seed": 3}
    with use_backend(backend):
        together = random_start(x, index=index, **rule)
        alone = [random_start(x[i : i + 1], index=index[i : i + 1], **rule) for i in range(6)]
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = random_start(x[order], index=index[order], **rule)
        unnumbered = random_start(x, **rule)
        numbered = random_start(x, index=torch.arange(6), **rule)
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(shuffled, together[order])
    assert torch.equal(unnumbered, numbered)
    assert not torch.equal(together, numbered)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "law"), RULES)
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)], ids=str)
def test_draws_do_not_depend_on_the_layout(backend: str, norm: str, law: str, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    rule = {"eps": 0.5, "norm": norm, "law": law, "seed": 3}
    with use_backend(backend):
        expected = random_start(x, **rule)
        last = random_start(x.to(memory_format=torch.channels_last), **rule)
        turned = random_start(x.mT.contiguous().mT, **rule)
        spread = random_start(x[:, :, None].expand(-1, -1, 4, -1, -1)[:, :, 2], **rule)
        into = random_start(x, out=torch.empty_like(x, memory_format=torch.channels_last), **rule)
        deep = random_start(x[:, :, None].to(memory_format=torch.channels_last_3d), **rule)
        flat = random_start(x[:, 0, 0, 0].clone(), **rule)
        thin = random_start(x[:, 0, 0, 0], out=torch.empty(4)[::2], **rule)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert turned.stride() == torch.empty_like(x.mT.contiguous().mT).stride()
    for result in (last, turned, spread, into, deep[:, :, 0]):
        assert torch.equal(result, expected)
    assert torch.equal(thin, flat)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "law"), RULES)
def test_out_may_be_the_input_or_a_view(backend: str, norm: str, law: str) -> None:
    x = images(4)
    rule = {"eps": 0.5, "norm": norm, "law": law, "seed": 3}
    with use_backend(backend):
        expected = random_start(x, **rule)
        inplace = x.clone()
        assert random_start(inplace, out=inplace, **rule) is inplace
        assert torch.equal(inplace, expected)
        # Sentinels on both sides, at every alignment; then every second sample of a wider batch.
        for start in range(5):
            buffer = torch.full((x.numel() + 8,), 42.0)
            view = buffer[start : start + x.numel()].view(x.shape)
            random_start(x, out=view, **rule)
            assert torch.equal(view, expected)
            assert (buffer[:start] == 42).all()
            assert (buffer[start + x.numel() :] == 42).all()
        wide = torch.full((8, 3, 5, 5), 42.0)
        random_start(x, out=wide[::2], **rule)
        assert torch.equal(wide[::2], expected)
        assert (wide[1::2] == 42).all()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("norm", "law"), RULES)
def test_radii_of_samples(backend: str, norm: str, law: str) -> None:
    x, radii = images(3), torch.tensor([0.25, 0.0, 1.0])
    with use_backend(backend):
        together = random_start(x, eps=radii, norm=norm, law=law, seed=1)
        alone = [
            random_start(x[i : i + 1], eps=radii[i], norm=norm, law=law, seed=1, index=torch.tensor([i]))
            for i in range(3)
        ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[1], x[1])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@settings(max_examples=30)  # Triton's interpreter takes 50 ms for one
@given(
    n=st.integers(1, 70),
    eps=st.sampled_from([0.0, 1e-4, 8 / 255, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    number=st.integers(0, 2**63 - 1),
)
def test_stays_in_ball_and_box(backend: str, norm: str, n: int, eps: float, seed: int, number: int) -> None:
    x = torch.rand(1, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    with use_backend(backend):
        start = random_start(x, eps=eps, norm=norm, seed=seed, index=torch.tensor([number]))
        free = random_start(x, eps=eps, norm=norm, seed=seed, index=torch.tensor([number]), bounds=WIDE)
    assert start.min() >= 0
    assert start.max() <= 1
    for point in (start, free):
        assert torch.linalg.vector_norm(point - x, ORDER[norm]) <= eps + 1e-13
    assert eps == 0 or not torch.equal(free, x)


def test_pixels_are_uniform_under_every_norm() -> None:
    for norm in ORDER:
        delta = draws(400, 300, norm, "pixel")
        assert delta.min() >= -1
        assert delta.max() < 1
        assert stats.kstest(delta.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > LEVEL
        assert torch.equal(delta, draws(400, 300, "linf"))


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_balls_are_uniform(norm: str, n: int) -> None:
    """Radius and every coordinate follow their exact laws, and no two coordinates are correlated."""
    delta = draws(20_000, n, norm, eps=3.0) / 3.0
    radius = torch.linalg.vector_norm(delta, ORDER[norm], dim=1)
    assert stats.kstest((radius**n).numpy(), "uniform").pvalue > LEVEL
    for column in delta[:, :8].T:
        if norm == "l2":
            assert stats.kstest((column**2).numpy(), stats.beta(0.5, (n + 1) / 2).cdf).pvalue > LEVEL
        else:
            assert stats.kstest(column.abs().numpy(), stats.beta(1, n).cdf).pvalue > LEVEL
        assert stats.binomtest(int((column > 0).sum()), len(column)).pvalue > LEVEL
    if n > 1:
        for t in (delta, delta.sign()):
            correlation = torch.corrcoef(t.T) - torch.eye(n, dtype=t.dtype)
            assert correlation.abs().max() < 5 / 20_000**0.5


def test_seeds_and_samples_are_independent() -> None:
    x = torch.zeros(2, 20_000)
    rule = {"eps": 1.0, "bounds": WIDE}
    seeds = [0, 1, 2**32, 2**63 - 1]
    rows = torch.cat([random_start(x, seed=seed, index=torch.tensor([0, 2**32]), **rule) for seed in seeds])
    assert (torch.corrcoef(rows) - torch.eye(8)).abs().max() < 5 / 20_000**0.5


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first = random_start(images(2), eps=0.1, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(random_start(images(2), eps=0.1, seed=5), first)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_ball_in_float32_is_the_one_in_float64_rounded(norm: str) -> None:
    x = images(4, dtype=torch.float64)
    double = random_start(x, eps=1.0, norm=norm, seed=2)
    single = random_start(x.float(), eps=1.0, norm=norm, seed=2)
    assert (single - double).abs().max() <= 2**-23


def test_one_more_graph_serves_every_further_seed() -> None:
    torch._dynamo.reset()
    x = images(2)
    compiled = torch.compile(random_start, fullgraph=True, backend="aot_eager")
    random_start(x, eps=0.1, seed=3)
    compiled(x, eps=0.1, seed=3)
    compiled(x, eps=0.1, seed=4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (0, 1, 2**31, 2**63 - 1):
            assert torch.equal(compiled(x, eps=0.1, seed=seed), random_start(x, eps=0.1, seed=seed))


WRONG = {
    "x is torch.float16.*leave the ball": (TypeError, {"x": torch.zeros(2, 3).half()}),
    r"x has shape \(\), expected \[B, ...\]": (ValueError, {"x": torch.zeros(())}),
    r"a sample of x .* has more than 2\*\*30 elements": (
        ValueError,
        {"x": torch.zeros(1, 1).expand(1, 2**30 + 1)},
    ),
    "norm is 'l3', expected one of linf, l2, l1": (ValueError, {"norm": "l3"}),
    "law is 'sphere', expected one of ball, pixel": (ValueError, {"law": "sphere"}),
    r"bounds are \(1.0, 0.0\), expected \(lowest, highest\)": (ValueError, {"bounds": (1.0, 0.0)}),
    "eps is -0.1, expected a radius >= 0": (ValueError, {"eps": -0.1}),
    r"eps is 8, expected pixel units of \[0, 1\]; write 8/255": (ValueError, {"eps": 8}),
    "eps is torch.float64, expected that of x": (TypeError, {"eps": torch.tensor(0.1, dtype=torch.float64)}),
    r"eps has shape \(3,\), expected \(\) or \(2,\)": (ValueError, {"eps": torch.zeros(3)}),
    "seed is a bool, expected an int": (TypeError, {"seed": True}),
    "seed is a float, expected an int": (TypeError, {"seed": 1.0}),
    "seed is -1, expected an int in": (ValueError, {"seed": -1}),
    r"seed is 9223372036854775808, expected an int in \[0, 2\*\*63\)": (ValueError, {"seed": 2**63}),
    "index is torch.int32, expected torch.int64": (TypeError, {"index": torch.zeros(2, dtype=torch.int32)}),
    r"index has shape \(3,\), expected \(2,\)": (ValueError, {"index": torch.zeros(3, dtype=torch.int64)}),
    "index is on meta": (ValueError, {"index": torch.zeros(2, dtype=torch.int64, device="meta")}),
    r"out has shape \(2,\), expected that of x": (ValueError, {"out": torch.zeros(2)}),
    "out is on meta": (ValueError, {"out": torch.zeros(2, 3, device="meta")}),
    "out is torch.float64, expected that of x": (TypeError, {"out": torch.zeros(2, 3, dtype=torch.float64)}),
    "x is NoneType, expected a tensor": (TypeError, {"x": None}),
    "index is list, expected a tensor": (TypeError, {"index": [0, 1]}),
    "out is list, expected a tensor": (TypeError, {"out": [0.0]}),
    r"x is torch.uint8, expected float32 or float64 pixels in \[0, 1\]: divide by 255$": (
        TypeError,
        {"x": torch.zeros(2, 3, dtype=torch.uint8)},
    ),
    r"out of shape \(2, 3\) is expanded": (ValueError, {"out": torch.zeros(3).expand(2, 3)}),
    r"eps is '8/255' \(str\), expected a number or a tensor": (TypeError, {"eps": "8/255"}),
    "eps is nan, expected a finite number": (ValueError, {"eps": float("nan")}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    kind, wrong = WRONG[message]
    with pytest.raises(kind, match=f"random_start: {message}"):
        random_start(**{"x": torch.zeros(2, 3), "eps": 0.1, "seed": 0, **wrong})
