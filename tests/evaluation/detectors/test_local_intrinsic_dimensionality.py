"""LID of spaces whose dimension is known, and against a dense computation in float64."""

from __future__ import annotations

import pytest
import torch
from given_features import Given, batches, clusters
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors import LocalIntrinsicDimensionality, lid_estimates
from robustfast.evaluation.detectors.distances import nearest


def dense(queries: Tensor, samples: Tensor, k: int, discarded: int) -> Tensor:
    """-k / sum log(r_i / r_k) from all differences at once, float64 [N]."""
    apart = (queries.double()[:, None] - samples.double()).square().sum(2).sqrt().sort(1).values
    near = apart[:, discarded : discarded + k]
    return -k / (near / near[:, -1:]).log().sum(1)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_uniform_samples_have_their_space_s_dimension(dimension: int) -> None:
    """The estimate is that of a Pareto law whose mean is d k' / (k' - 1) with k' = k - 1 free distances."""
    generator = torch.Generator().manual_seed(dimension)
    samples = torch.rand(20_000, dimension, generator=generator)
    # In a plane of a wider space, and away from its border.
    wide = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q[:dimension]
    queries = 0.4 + 0.2 * torch.rand(300, dimension, generator=generator)
    found = lid_estimates(queries @ wide, samples @ wide, [100], leave_out_nearest=False)[100]
    assert found.mean().item() == pytest.approx(dimension, rel=0.06)


def test_equal_to_a_dense_computation_on_500_points() -> None:
    clean, y = clusters(500, 64, 5)
    x = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    detector = LocalIntrinsicDimensionality("features", k=20).fit(Given(64, 5), batches(clean, y))
    for images in (x, clean):
        blocks = zip(images.split(100), clean.split(100), strict=True)
        expected = torch.cat([dense(block, own, 20, 1) for block, own in blocks])
        found = detector.score(images, reference=clean)
        assert found.dtype == torch.float64
        torch.testing.assert_close(-found[:, 0], expected, rtol=1e-10, atol=0)
    # Against what fit took, nothing is left out.
    torch.testing.assert_close(-detector.score(x)[:, 0], dense(x, clean[:100], 20, 0), rtol=1e-10, atol=0)
    whole = LocalIntrinsicDimensionality("features", k=99, reference_size=None)
    whole.fit(Given(64, 5), batches(clean, y))
    torch.testing.assert_close(-whole.score(x)[:, 0], dense(x, clean, 99, 0), rtol=1e-10, atol=0)
    for k, score in detector.sweep(x, (10, 99), reference=clean).items():
        torch.testing.assert_close(-score[:100, 0], dense(x[:100], clean[:100], k, 1), rtol=1e-10, atol=0)


def test_the_nearest_is_left_out_of_a_block() -> None:
    """Adversarial images lose their own original, as in the protocol, though they are not the same."""
    clean = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    detector = LocalIntrinsicDimensionality("features", k=2, batch_size=4).fit(
        Given(1, 1), [(clean, torch.zeros(4, dtype=torch.long))]
    )
    found = detector.score(clean + 0.25, reference=clean)[:, 0]
    # Of the first: 0.25 is left out, then 0.75 and 2.75.
    assert found[0].item() == pytest.approx(2 / torch.tensor(0.75 / 2.75).log().item())
    assert detector.score(clean + 0.25)[0, 0].item() == pytest.approx(
        2 / torch.tensor(0.25 / 0.75).log().item()
    )


def test_no_image_of_the_tail_is_dropped() -> None:
    clean, y = clusters(250, 8, 4)
    x = clean + 0.1
    detector = LocalIntrinsicDimensionality("features", k=60).fit(Given(8, 4), batches(clean, y))
    found = -detector.score(x, reference=clean)[:, 0]
    assert found.shape == (250,)
    # 50 images are left, fewer than k: they are held against the last 100.
    torch.testing.assert_close(found[200:], dense(x[200:], clean[150:], 60, 1), rtol=1e-10, atol=0)
    torch.testing.assert_close(found[100:200], dense(x[100:200], clean[100:200], 60, 1), rtol=1e-10, atol=0)


def test_distances_of_zero_are_no_neighbours() -> None:
    samples = torch.tensor([[0.0], [0.0], [1.0], [2.0], [4.0]])
    here, there = torch.tensor([[0.0]]), torch.tensor([[1.5]])
    found = lid_estimates(here, samples, [5], leave_out_nearest=False)[5].item()
    # Three are apart, at 1, 2 and 4.
    assert found == pytest.approx(3 / (torch.tensor(4.0).log() + torch.tensor(2.0).log()).item())
    # All at the same place; all equally far: as many dimensions as there are features.
    same = torch.zeros(5, 3)
    assert lid_estimates(same[:1], same, [4], leave_out_nearest=True)[4].item() == 0
    assert lid_estimates(same[:1] + 1, same, [4], leave_out_nearest=True)[4].item() == 3
    assert lid_estimates(there, samples, [4], leave_out_nearest=True)[4].isfinite().all()


def test_chunks_change_nothing() -> None:
    samples, _ = clusters(500, 16, 4)
    queries = torch.cat([samples[:40], clusters(37, 16, 4, seed=1)[0]])
    expected = torch.cdist(queries.double(), samples.double(), compute_mode="donot_use_mm_for_euclid_dist")
    expected = expected.sort(1).values[:, :70]
    for chunk_bytes in (2**26, 9_000, 1_500):
        found = nearest(queries, samples, 70, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert (found[:40, 0] == 0).all(), "a sample is at no distance from itself"


def test_a_reference_of_ones_own_and_states() -> None:
    clean, y = clusters(300, 8, 4)
    detector = LocalIntrinsicDimensionality("features", k=5).fit(Given(8, 4), batches(clean, y))
    expected = -dense(clean[:30], clean[200:], 5, 0)
    torch.testing.assert_close(detector.refer(clean[200:]).score(clean[:30])[:, 0], expected)
    other = LocalIntrinsicDimensionality(k=5).load_state_dict(detector.state_dict(), Given(8, 4))
    assert torch.equal(other.score(clean[:30]), detector.score(clean[:30]))


def test_a_loader_is_read_no_further_than_needed() -> None:
    clean, y = clusters(300, 8, 4)
    read = []
    loader = (read.append(number) or batch for number, batch in enumerate(batches(clean, y, 64)))
    detector = LocalIntrinsicDimensionality("features").fit(Given(8, 4), loader)
    assert read == [0, 1]
    assert detector.state_dict()["state"]["reference"]["features"].shape == (100, 8)


def test_mistakes_end_in_one_line() -> None:
    x, y = clusters(120, 4, 3)

    def fitted(**settings: object) -> LocalIntrinsicDimensionality:
        return LocalIntrinsicDimensionality("features", **settings).fit(Given(4, 3), batches(x, y))

    cases = [
        (lambda: LocalIntrinsicDimensionality(k=1), "k 1: expected 2 or more"),
        (lambda: fitted(k=101), "k 101: expected at most 100"),
        (
            lambda: fitted(k=100).score(x, reference=x),
            "k 100: expected at most 99, the reference has 100 images",
        ),
        (lambda: fitted().sweep(x, [10, 130]), "k 130: expected at most 100"),
        (
            lambda: fitted().score(x, reference=x[:100]),
            "100 clean images as the reference of 120: expected one for each",
        ),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    x, y = clusters(500, 64, 5)
    cpu = LocalIntrinsicDimensionality("features").fit(Given(64, 5), batches(x, y))
    gpu = LocalIntrinsicDimensionality("features").fit(Given(64, 5).cuda(), batches(x, y))
    for reference in (None, x):
        expected = cpu.score(x + 0.1, reference)
        torch.testing.assert_close(gpu.score(x + 0.1, reference), expected, rtol=1e-10, atol=1e-8)
