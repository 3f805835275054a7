"""Adam on plain tensors is `torch.optim.Adam`, and survives gradients that are none."""

from __future__ import annotations

import pytest
import torch

from robustfast.attacks.adam import adam_step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 3, generator=generator, dtype=dtype)
    theirs = ours.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.03)
    mean, square, count = torch.zeros_like(ours), torch.zeros_like(ours), torch.zeros((), dtype=torch.float64)
    for step in range(30):
        grad = torch.randn(5, 3, generator=generator, dtype=dtype) * 10.0 ** (step % 5 - 2)
        theirs.grad = grad.clone()
        optimizer.step()
        adam_step(ours, grad, mean, square, count, step_size=0.03)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert count == 30


def test_an_entry_that_is_no_number_counts_as_zero() -> None:
    grad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    value, mean, square = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    count = torch.zeros((), dtype=torch.float64)
    for _ in range(2):
        adam_step(value, grad, mean, square, count, step_size=0.1)
    assert torch.allclose(value, torch.tensor([-0.2, 0, 0, 0]))
    assert grad[1].isnan(), "the caller's gradient is left alone"
