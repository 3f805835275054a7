"""Draws keyed by sample: the same in any batch, spread as they say, and never twice."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from robustfast.attacks.draws import normal, signs, uniform

LAWS = {"uniform": uniform, "signs": signs, "normal": normal}


@pytest.mark.parametrize("law", LAWS)
def test_a_sample_draws_alike_in_any_batch(law: str) -> None:
    draw, index = LAWS[law], torch.tensor([7, 0, 2**40 + 3])
    together = draw(index, (3, 5, 5), seed=11, step=2)
    assert together.shape == (3, 3, 5, 5)
    for i, one in enumerate(index):
        assert torch.equal(draw(one[None], (3, 5, 5), seed=11, step=torch.tensor(2)), together[i : i + 1])


@pytest.mark.parametrize("law", LAWS)
def test_seed_step_and_sample_each_draw_anew(law: str) -> None:
    def drawn(seed: int, step: int, sample: int) -> Tensor:
        return LAWS[law](torch.tensor([sample]), (64,), seed=seed, step=step)

    keys = itertools.product((0, 1, 2**40), (0, 1), (0, 1, 2**33))
    assert len({tuple(drawn(*key).flatten().tolist()) for key in keys}) == 18


def test_the_laws_are_what_they_say() -> None:
    index = torch.arange(100)
    u = uniform(index, (1000,), seed=1, dtype=torch.float64)
    assert 0 <= u.min() < u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.001
    assert torch.equal(uniform(index, (1000,), seed=1).double(), u)
    assert stats.kstest(normal(index, (1000,), seed=2).flatten().numpy(), "norm").pvalue > 0.001
    s = signs(index, (1000,), seed=3)
    assert set(s.unique().tolist()) == {-1.0, 1.0}
    assert abs(s.mean()) < 4 / s.numel() ** 0.5


def test_no_generator_moves() -> None:
    before = torch.get_rng_state()
    for draw in LAWS.values():
        draw(torch.arange(3), (7,), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
