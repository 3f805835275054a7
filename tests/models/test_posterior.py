from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as divergence

from robustfast.models.posterior import drawn, kl_divergence

# Draws are a function of the seed: a law that holds at this level today holds tomorrow.
LEVEL = 1e-3


def moments(B: int, L: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(B + L)
    mean, log_variance = torch.randn(2, B, L, generator=generator, dtype=torch.float64)
    return mean.to(dtype), log_variance.to(dtype)


def test_the_standard_gaussian_is_at_no_divergence_of_itself() -> None:
    zeros = torch.zeros(3, 7)
    assert torch.equal(kl_divergence(zeros, zeros), torch.zeros(3))


def test_the_divergence_is_that_of_torch_and_grows_by_half_the_squared_mean() -> None:
    mean, log_variance = moments(5, 9)
    standard = Independent(Normal(torch.zeros(9).double(), torch.ones(9).double()), 1)
    expected = divergence(Independent(Normal(mean, (log_variance / 2).exp()), 1), standard)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected, rtol=1e-12, atol=1e-12)
    zeros = torch.zeros(1, 4)
    assert kl_divergence(zeros + 2, zeros).item() == 4 * 2.0


def test_a_sample_is_drawn_by_seed_and_number_whatever_its_batch() -> None:
    mean, log_variance = moments(6, 10, torch.float32)
    index = torch.tensor([3, 2**40, 0, 17, 5, 2**33 + 3])
    together = drawn(mean, log_variance, seed=9, index=index)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        assert torch.equal(drawn(mean[part], log_variance[part], seed=9, index=index[part]), together[part])
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(drawn(mean[order], log_variance[order], seed=9, index=index[order]), together[order])
    assert not torch.isclose(drawn(mean, log_variance, seed=10, index=index), together).any()
    assert not torch.isclose(drawn(mean, log_variance, seed=9, index=index + 1), together).any()


def test_no_generator_of_torch_is_read_or_moved() -> None:
    mean, log_variance = moments(2, 4)
    torch.manual_seed(0)
    first, before = drawn(mean, log_variance, seed=1, index=torch.arange(2)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(drawn(mean, log_variance, seed=1, index=torch.arange(2)), first)
    torch.manual_seed(0)
    drawn(mean, log_variance, seed=1, index=torch.arange(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_gaussian_with_that_mean_and_variance() -> None:
    count, L = 4000, 5
    mean = torch.tensor([-3.0, 0.0, 0.5, 2.0, 10.0], dtype=torch.float64)
    log_variance = torch.tensor([-2.0, 0.0, 1.0, 3.0, -6.0], dtype=torch.float64)
    z = drawn(mean.expand(count, L), log_variance.expand(count, L), seed=4, index=torch.arange(count))
    noise = (z - mean) / (log_variance / 2).exp()
    for entry in noise.T:
        assert stats.kstest(entry.numpy(), "norm").pvalue > LEVEL
        assert stats.ttest_1samp(entry.numpy(), 0.0).pvalue > LEVEL
        spread = count * entry.square().mean().item()
        assert LEVEL < stats.chi2(count).cdf(spread) < 1 - LEVEL
    # Entries, and neighbouring samples, have nothing to do with each other.
    between = torch.corrcoef(noise.T) - torch.eye(L).double()
    assert between.abs().max() < 5 / count**0.5
    assert (noise[1:] * noise[:-1]).mean(0).abs().max() < 5 / count**0.5


def test_gradients_reach_mean_and_log_variance_through_the_draw() -> None:
    mean, log_variance = (t.requires_grad_() for t in moments(3, 4))
    index = torch.arange(3)
    assert torch.autograd.gradcheck(lambda m, v: drawn(m, v, seed=2, index=index), (mean, log_variance))
    assert torch.autograd.gradcheck(kl_divergence, (mean, log_variance))
