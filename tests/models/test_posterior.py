from __future__ import annotations

import torch
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as divergence

from robustfast.models.posterior import kl_divergence


def test_the_standard_gaussian_is_at_no_divergence_of_itself() -> None:
    zeros = torch.zeros(3, 7)
    assert torch.equal(kl_divergence(zeros, zeros), torch.zeros(3))


def test_the_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64)
    standard = Independent(Normal(torch.zeros(9).double(), torch.ones(9).double(), validate_args=False), 1)
    given = Independent(Normal(mean, (log_variance / 2).exp(), validate_args=False), 1)
    torch.testing.assert_close(
        kl_divergence(mean, log_variance), divergence(given, standard), rtol=1e-12, atol=1e-12
    )
    assert torch.autograd.gradcheck(kl_divergence, (mean.requires_grad_(), log_variance.requires_grad_()))


def test_it_grows_by_half_the_squared_mean_and_with_narrow_and_wide_alike() -> None:
    zeros = torch.zeros(1, 4)
    assert kl_divergence(zeros + 2, zeros).item() == 4 * 2.0
    assert kl_divergence(zeros, zeros - 1).item() > 0
    assert kl_divergence(zeros, zeros + 1).item() > 0
