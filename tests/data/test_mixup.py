from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_law
from scipy.stats import chisquare, kstest

from robustfast.data import load
from robustfast.data.mixup import beta, mixup
from robustfast.seeds import derive

SEED = 2**50 + 3


@pytest.fixture(scope="module")
def images(real_cifar10):
    return load("cifar10", "test", real_cifar10).images[:100].float() / 255


@pytest.mark.parametrize(("a", "b"), [(2, 2), (1, 1), (0.2, 0.2), (8.5, 8.5), (2, 5), (0.5, 3), (40, 1)])
def test_the_law_of_the_weight(a, b):
    drawn = beta(a, b, seed=SEED, index=torch.arange(20_000))
    assert drawn.dtype == torch.float64
    assert kstest(drawn.numpy(), beta_law(a, b).cdf).pvalue > 1e-3


def test_the_law_of_the_weight_of_a_batch():
    """One draw for each seed, as training takes them: derived for the epoch and the batch."""
    drawn = [
        float(beta(2, 2, seed=derive(0, "mixup", epoch, batch))) for epoch in range(20) for batch in range(50)
    ]
    assert kstest(drawn, beta_law(2, 2).cdf).pvalue > 1e-3


def test_tiny_shapes_give_numbers():
    drawn = beta(1e-6, 1e-6, seed=1, index=torch.arange(4000))
    assert ((drawn == 0) | (drawn == 1)).sum() > 3990
    assert 1800 < (drawn > 0.5).sum() < 2200


def test_images_are_mixed_with_their_partners(images):
    index = torch.arange(500, 600)
    for per_sample in (False, True):
        x, partner, weight = mixup(images, seed=SEED, index=index, per_sample=per_sample)
        assert weight.shape == ((100,) if per_sample else ())
        share = weight.view(-1, 1, 1, 1)
        expected = share * images.double() + (1 - share) * images[partner].double()
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-7)
        assert sorted(partner.tolist()) == list(range(100))
        assert (x.dtype, x.shape) == (images.dtype, images.shape)
    assert torch.equal(weight, beta(2, 2, seed=SEED, index=index))


def test_pairs_follow_the_samples_whatever_their_order(images):
    index = torch.arange(500, 600)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    for per_sample in (False, True):
        first = mixup(images, seed=SEED, index=index, per_sample=per_sample)
        again = mixup(images[order], seed=SEED, index=index[order], per_sample=per_sample)
        assert torch.equal(again.x, first.x[order])
        assert torch.equal(index[order][again.partner], index[first.partner][order])


def test_the_weights_of_samples_do_not_depend_on_the_batch(images):
    index = torch.arange(100)
    whole = mixup(images, seed=SEED, index=index, per_sample=True).weight
    halves = [
        mixup(images[i : i + 50], seed=SEED, index=index[i : i + 50], per_sample=True).weight for i in (0, 50)
    ]
    assert torch.equal(torch.cat(halves), whole)
    one = mixup(images, seed=SEED, index=index).weight
    assert torch.equal(mixup(images[:50], seed=SEED, index=index[:50]).weight, one)
    assert not torch.equal(mixup(images, seed=SEED + 1, index=index).weight, one)


def test_permutations_are_uniform():
    """All 24 of four samples, by seed; the weight is no part of it."""
    x, index = torch.zeros(4, 1), torch.tensor([7, 2, 900, 31])
    found = Counter(tuple(mixup(x, seed=seed, index=index).partner.tolist()) for seed in range(1200))
    assert len(found) == 24
    assert chisquare(list(found.values())).pvalue > 1e-4


def test_no_generator_is_read_and_the_images_stay(images):
    before, state = images.clone(), torch.get_rng_state()
    mixup(images, seed=0, index=torch.arange(100))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@given(
    st.integers(0, 2**62), st.floats(0.01, 50), st.booleans(), st.sampled_from([torch.float32, torch.float64])
)
def test_a_mixture_lies_between_its_two(seed, alpha, per_sample, dtype):
    generator = torch.Generator().manual_seed(seed % 1000)
    x = torch.rand(9, 3, 4, 4, generator=generator, dtype=dtype)
    x[:, :, 0] = 1.0
    mixed, partner, weight = mixup(x, seed=seed, index=torch.arange(9), alpha=alpha, per_sample=per_sample)
    assert ((torch.minimum(x, x[partner]) <= mixed) & (mixed <= torch.maximum(x, x[partner]))).all()
    assert ((weight >= 0) & (weight <= 1)).all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.zeros(4, 3, dtype=torch.uint8)}, TypeError, "torch.uint8"),
        ({"index": torch.zeros(4)}, TypeError, "index torch.float32"),
        ({"index": torch.arange(5)}, ValueError, r"\[5\]"),
        ({"alpha": 0.0}, ValueError, "alpha is 0.0"),
        ({"alpha": math.nan}, ValueError, "alpha is nan"),
        ({"seed": 2**63}, ValueError, "seed is 9223372036854775808"),
    ],
)
def test_wrong_arguments(changes, error, message):
    arguments = {"x": torch.zeros(4, 3), "seed": 0, "index": torch.arange(4)} | changes
    with pytest.raises(error, match=message):
        mixup(arguments.pop("x"), **arguments)
    with pytest.raises(ValueError, match="b is -1"):
        beta(1, -1, seed=0)


@pytest.mark.gpu
def test_the_gpu_draws_the_same(images):
    index = torch.arange(100)
    here = mixup(images, seed=SEED, index=index, per_sample=True)
    there = mixup(images.cuda(), seed=SEED, index=index.cuda(), per_sample=True)
    assert torch.equal(there.partner.cpu(), here.partner)
    torch.testing.assert_close(there.weight.cpu(), here.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(there.x.cpu(), here.x, rtol=0, atol=1e-6)
