from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as divergence

from robustfast.attacks.draws import normal
from robustfast.ops import backends, reparameterise, use_backend
from robustfast.reference import reparameterise as reference

HERE = [name for name, reason in backends()["reparameterise"].items() if reason is None and name != "cuda"]
# Draws are a function of the seed: a law that holds at this level today holds tomorrow.
LEVEL = 1e-3
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
Both = tuple[Tensor, Tensor]


def moments(B: int, L: int, dtype: torch.dtype = torch.float64) -> Both:
    generator = torch.Generator().manual_seed(B + L)
    mean, log_variance = torch.randn(2, B, L, generator=generator, dtype=torch.float64)
    return mean.to(dtype), log_variance.to(dtype)


def plain(mean: Tensor, log_variance: Tensor, *, seed: int, index: Tensor) -> Both:
    """As papers and scripts write it."""
    noise = normal(index, mean.shape[1:], seed=seed, dtype=mean.dtype)
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
    return mean + torch.exp(log_variance / 2) * noise, kl


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
@pytest.mark.parametrize("L", [8, 5, 6, 7, 1])
def test_the_noise_is_that_of_the_documented_counter(backend: str, L: int) -> None:
    seed, numbers = 0x0123456789ABCDEF, [0, 2**40 + 3, 2**63 - 1]

    def uniform(number: int, word: int) -> float:
        counter = [word // 4, 3, number % 2**32, number >> 32]
        return (philox(counter, [seed % 2**32, seed >> 32])[word % 4] + 0.5) / 2**32

    expected = [
        [
            math.sqrt(-2 * math.log(uniform(number, e))) * math.cos(2 * math.pi * uniform(number, L + e))
            for e in range(L)
        ]
        for number in numbers
    ]
    for dtype in (torch.float32, torch.float64):
        zeros, index = torch.zeros(3, L, dtype=dtype), torch.tensor(numbers)
        with use_backend(backend):
            noise, kl = reparameterise(zeros, zeros, seed=seed, index=index)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(noise, torch.tensor(expected, dtype=dtype), rtol=2 * eps, atol=8 * eps)
        torch.testing.assert_close(noise, normal(index, (L,), seed=seed, dtype=dtype), rtol=eps, atol=8 * eps)
        # The standard Gaussian is at no divergence of itself, exactly.
        assert torch.equal(kl, torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("backend", HERE)
def test_a_sample_does_not_depend_on_its_batch(backend: str) -> None:
    mean, log_variance = moments(6, 70, torch.float32)
    index = torch.tensor([9, 2**33, 0, 4, 2**33 + 9, 1])
    with use_backend(backend):
        together = reparameterise(mean, log_variance, seed=3, index=index)
        alone = [
            reparameterise(mean[i : i + 1], log_variance[i : i + 1], seed=3, index=index[i : i + 1])
            for i in range(6)
        ]
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = reparameterise(mean[order], log_variance[order], seed=3, index=index[order])
        other = reparameterise(mean, log_variance, seed=4, index=index)
    for k in (0, 1):
        assert torch.equal(together[k], torch.cat([one[k] for one in alone]))
        assert torch.equal(shuffled[k], together[k][order])
    assert not torch.isclose(other[0], together[0]).any()
    assert torch.equal(other[1], together[1])


def test_no_generator_of_torch_is_read_or_moved() -> None:
    mean, log_variance = moments(2, 4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    reparameterise(mean, log_variance, seed=1, index=torch.arange(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("backend", HERE)
def test_draws_are_gaussian(backend: str) -> None:
    zeros = torch.zeros(40, 100, dtype=torch.float64)
    with use_backend(backend):
        noise, _ = reparameterise(zeros, zeros, seed=11, index=torch.arange(40))
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > LEVEL
    assert LEVEL < stats.chi2(4000).cdf(noise.square().sum().item()) < 1 - LEVEL
    # Neither neighbouring samples nor neighbouring entries have anything to do with each other.
    for products in (noise[1:] * noise[:-1], noise[:, 1:] * noise[:, :-1]):
        assert abs(products.mean().item()) < 4 / products.numel() ** 0.5


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("L", [64, 77])
def test_values_and_gradients_are_those_of_the_plain_writing(
    backend: str, dtype: torch.dtype, L: int
) -> None:
    index = torch.tensor([5, 2**40 + 1, 0])
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, L), (3,))]

    def run(function: Callable[..., Both], given: torch.dtype) -> list[Tensor]:
        mean, log_variance = (t.to(given).requires_grad_() for t in moments(3, L))
        z, kl = function(mean, log_variance, seed=2**60 + 5, index=index)
        total = (z * weights[0].to(given)).sum() + (kl * weights[1].to(given)).sum()
        return [z.detach(), kl.detach(), *torch.autograd.grad(total, (mean, log_variance))]

    with use_backend(backend):
        ours = run(reparameterise, dtype)
    for got, wanted in zip(ours, run(plain, torch.float64), strict=True):
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.parametrize("backend", HERE)
def test_either_result_alone_has_its_gradient(backend: str) -> None:
    mean, log_variance = (t.requires_grad_() for t in moments(3, 9))
    index = torch.arange(3)
    for use in (lambda z, kl: z.sum(), lambda z, kl: kl.sum(), lambda z, kl: z[1, 2] * kl[0]):
        with use_backend(backend):
            ours = torch.autograd.grad(
                use(*reparameterise(mean, log_variance, seed=1, index=index)), (mean, log_variance)
            )
        theirs = torch.autograd.grad(
            use(*plain(mean, log_variance, seed=1, index=index)), (mean, log_variance)
        )
        for got, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", HERE)
def test_only_what_is_asked_for_gets_a_gradient(backend: str) -> None:
    mean, log_variance = moments(2, 5)
    index = torch.arange(2)
    with use_backend(backend):
        z, kl = reparameterise(mean.requires_grad_(), log_variance, seed=1, index=index)
        (z.sum() + kl.sum()).backward()
        torch.testing.assert_close(mean.grad, 1 + mean.detach())
        assert log_variance.grad is None
        assert not any(
            t.requires_grad for t in reparameterise(mean.detach(), log_variance, seed=1, index=index)
        )


@pytest.mark.parametrize("backend", HERE)
def test_the_divergence_is_that_of_torch(backend: str) -> None:
    mean, log_variance = moments(4, 300)
    with use_backend(backend):
        _, kl = reparameterise(mean, log_variance, seed=0, index=torch.arange(4))
    standard = Independent(
        Normal(torch.zeros(300).double(), torch.ones(300).double(), validate_args=False), 1
    )
    given = Independent(Normal(mean, (log_variance / 2).exp(), validate_args=False), 1)
    torch.testing.assert_close(kl, divergence(given, standard), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_hostile_log_variances_end_as_in_the_reference(backend: str, dtype: torch.dtype) -> None:
    hostile = [math.nan, math.inf, -math.inf, 1e4, -1e4, 700.0, -700.0, 88.0, -104.0, 1e-30, 0.0, -0.0]
    log_variance = torch.tensor([[value] for value in hostile], dtype=dtype)
    mean, index = torch.full_like(log_variance, 0.5), torch.arange(len(hostile))
    z, kl, shift = reference.reparameterise(mean, log_variance, 1, index)
    grad = torch.ones_like(mean), torch.ones_like(kl)
    expected = z, kl, *reference.reparameterise_backward(*grad, mean, log_variance, shift)
    leaves = mean.requires_grad_(), log_variance.requires_grad_()
    with use_backend(backend):
        z, kl = reparameterise(*leaves, seed=1, index=index)
        got = z, kl, *torch.autograd.grad((z, kl), leaves, grad)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_there_is_no_second_derivative() -> None:
    mean, log_variance = (t.requires_grad_() for t in moments(2, 3))
    z, kl = reparameterise(mean, log_variance, seed=1, index=torch.arange(2))
    (first,) = torch.autograd.grad(z.square().sum() + kl.sum(), mean, create_graph=True)
    with pytest.raises(RuntimeError, match="reparameterise has no second derivative"):
        first.sum().backward()


WRONG: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "mean is list, expected a tensor": (TypeError, {"mean": [0.0]}),
    "index is NoneType, expected a tensor": (TypeError, {"index": None}),
    "mean is torch.bfloat16, expected float32 or float64": (
        TypeError,
        {"mean": torch.zeros(2, 3, dtype=torch.bfloat16)},
    ),
    r"mean has shape \(3,\), expected \[B, L\]": (ValueError, {"mean": torch.zeros(3)}),
    r"mean has shape \(1, 536870913\), expected at most 2\*\*29 entries": (
        ValueError,
        {"mean": torch.zeros(1, 1).expand(1, 2**29 + 1)},
    ),
    "log_variance is torch.float64, expected that of mean, torch.float32": (
        TypeError,
        {"log_variance": torch.zeros(2, 3, dtype=torch.float64)},
    ),
    r"log_variance has shape \(2, 4\), expected that of mean, \(2, 3\)": (
        ValueError,
        {"log_variance": torch.zeros(2, 4)},
    ),
    "log_variance is on meta, expected the device of mean, cpu": (
        ValueError,
        {"log_variance": torch.zeros(2, 3, device="meta")},
    ),
    "index is torch.int32, expected torch.int64": (TypeError, {"index": torch.zeros(2, dtype=torch.int32)}),
    r"index has shape \(3,\), expected \(2,\), one for each sample": (ValueError, {"index": torch.arange(3)}),
    "index is on meta": (ValueError, {"index": torch.zeros(2, dtype=torch.int64, device="meta")}),
    "seed is a bool, expected an int": (TypeError, {"seed": True}),
    "seed is a float, expected an int": (TypeError, {"seed": 1.0}),
    "seed is -1, expected an int in": (ValueError, {"seed": -1}),
    r"seed is 9223372036854775808, expected an int in \[0, 2\*\*63\)": (ValueError, {"seed": 2**63}),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    kind, wrong = WRONG[message]
    given = {
        "mean": torch.zeros(2, 3),
        "log_variance": torch.zeros(2, 3),
        "seed": 0,
        "index": torch.arange(2),
    }
    given |= wrong
    with pytest.raises(kind, match=f"reparameterise: {message}"):
        reparameterise(given.pop("mean"), given.pop("log_variance"), **given)
