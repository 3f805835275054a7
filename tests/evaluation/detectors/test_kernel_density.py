"""Kernel density against scikit-learn and a dense computation in float64."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from given_features import Given, batches, clusters
from sklearn.neighbors import KernelDensity as Peer
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors import KernelDensity, log_densities


def dense(queries: Tensor, samples: Tensor, bandwidth: float) -> Tensor:
    """log mean_i N(q; s_i, h^2 I) from all differences at once, float64 [N]."""
    apart = (queries.double()[:, None] - samples.double()).square().sum(2)
    H = samples.shape[1]
    constant = math.log(len(samples)) + H / 2 * math.log(2 * math.pi * bandwidth**2)
    return (-apart / (2 * bandwidth**2)).logsumexp(1) - constant


def test_equal_to_a_dense_computation_on_500_points() -> None:
    x, y = clusters(500, 64, 5)
    queries, _ = clusters(120, 64, 5, seed=1)
    model = Given(64, 5)
    predicted = queries[:, :5].argmax(1)
    # Bandwidths far below and above the distances: the exponents reach -1e4.
    for bandwidth in (0.1, 1.0, 10.0):
        detector = KernelDensity(bandwidth=bandwidth).fit(model, batches(x, y))
        expected = torch.stack(
            [dense(q[None], x[y == c], bandwidth)[0] for q, c in zip(queries, predicted, strict=True)]
        )
        found = detector.score(queries)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-12, atol=1e-9)
        assert torch.equal(detector.sweep(queries, [bandwidth, 3.0])[bandwidth], found)
    assert detector.layers == ("head:input",)


def test_equal_to_scikit_learn() -> None:
    x, _ = clusters(200, 3, 3)
    queries, _ = clusters(50, 3, 3, seed=1)
    for bandwidth in (0.3, 2.0):
        peer = Peer(bandwidth=bandwidth, rtol=0, atol=0).fit(x.double().numpy())
        expected = peer.score_samples(queries.double().numpy())
        np.testing.assert_allclose(log_densities(queries, x, [bandwidth])[0].numpy(), expected, rtol=1e-10)


def test_the_density_of_a_known_gaussian() -> None:
    """Of samples of N(0, I), the estimate estimates N(0, (1 + h^2) I)."""
    generator = torch.Generator().manual_seed(0)
    samples, queries = torch.randn(40_000, 2, generator=generator), torch.randn(200, 2, generator=generator)
    variance = 1 + 0.3**2
    expected = -queries.double().square().sum(1) / (2 * variance) - math.log(2 * math.pi * variance)
    found = log_densities(queries, samples, [0.3])[0]
    # Deep in the tails few samples decide.
    near = queries.norm(dim=1) < 2.5
    assert (found - expected)[near].abs().max() < 0.15
    assert (found - expected).abs().mean() < 0.04


def test_the_class_is_the_predicted_one() -> None:
    x, y = clusters(60, 4, 2)
    model = Given(4, 2)
    detector = KernelDensity(bandwidth=1.0).fit(model, batches(x, y))
    # Between both means; the logits alone say which class it is held against.
    query = torch.tensor([[2.0, 1.9, 0.0, 0.0], [1.9, 2.0, 0.0, 0.0]])
    expected = torch.stack([dense(query[:1], x[y == 0], 1.0), dense(query[1:], x[y == 1], 1.0)])
    torch.testing.assert_close(detector.score(query), expected)
    # Far from a class is less likely than at it.
    far, at = detector.score(torch.tensor([[9.0, 0.0, 9.0, 9.0], [3.0, 0.0, 0.0, 0.0]])).flatten()
    assert far < at


def test_chunks_change_nothing() -> None:
    x, y = clusters(200, 16, 4)
    queries, _ = clusters(60, 16, 4, seed=1)
    found = [
        KernelDensity(chunk_bytes=size, batch_size=batch).fit(Given(16, 4), batches(x, y, pieces))
        for size, batch, pieces in ((2**26, 100, 200), (9_000, 7, 33), (1_500, 100, 64))
    ]
    first = found[0].score(queries)
    for detector in found[1:]:
        torch.testing.assert_close(detector.score(queries), first, rtol=1e-12, atol=1e-9)
        assert detector.chosen == found[0].chosen


def test_a_bandwidth_is_chosen_by_held_out_likelihood() -> None:
    x, y = clusters(600, 4, 3, spread=0.5)
    detector = KernelDensity().fit(Given(4, 3), batches(x, y))
    expected = []
    for bandwidth in detector.bandwidths:
        total = torch.cat([dense(x[y == c][::5], _others(x[y == c]), bandwidth) for c in range(3)])
        expected.append(total.mean().item())
    assert detector.likelihoods["head:input"] == pytest.approx(expected)
    best = detector.bandwidths[int(np.argmax(expected))]
    assert detector.chosen == {"head:input": best}
    assert 0.15 < best < 0.6
    assert torch.equal(
        detector.score(x[:9]), KernelDensity(bandwidth=best).fit(Given(4, 3), batches(x, y)).score(x[:9])
    )
    # Twice the spread, twice the bandwidth: 10 ** 0.3 is three steps of the grid.
    wider = KernelDensity().fit(Given(4, 3), batches(2 * x, y)).chosen["head:input"]
    assert wider / best == pytest.approx(2, rel=0.01)


def _others(samples: Tensor) -> Tensor:
    return samples[torch.arange(len(samples)) % 5 != 0]


def test_layers_have_their_own_bandwidths() -> None:
    model = Given(4, 3)
    with torch.no_grad():
        model.head.weight.mul_(5)
    x, y = clusters(300, 4, 3)
    detector = KernelDensity(["features", "head"]).fit(model, batches(x, y))
    assert detector.score(x[:7]).shape == (7, 2)
    assert detector.chosen["head"] > 3 * detector.chosen["features"]


def test_its_state_is_read_back() -> None:
    x, y = clusters(90, 4, 3)
    detector = KernelDensity().fit(Given(4, 3), batches(x, y))
    file = io.BytesIO()
    torch.save(detector.state_dict(), file)
    file.seek(0)
    other = KernelDensity().load_state_dict(torch.load(file, weights_only=True), Given(4, 3))
    assert other.chosen == detector.chosen
    assert torch.equal(other.score(x[:20]), detector.score(x[:20]))


def test_features_are_copied() -> None:
    """The inputs of a layer may be the loader's own memory, which it may use again."""
    x, y = clusters(60, 4, 3)
    buffer = torch.empty_like(x[:20])
    loader = ((buffer.copy_(images), labels) for images, labels in batches(x, y, 20))
    expected = KernelDensity(bandwidth=1.0).fit(Given(4, 3), batches(x, y, 20)).score(x)
    assert torch.equal(KernelDensity(bandwidth=1.0).fit(Given(4, 3), loader).score(x), expected)


def test_mistakes_end_in_one_line() -> None:
    x, y = clusters(30, 4, 3)
    model = Given(4, 3)
    cases = [
        (lambda: KernelDensity(bandwidth=0.0), "bandwidth 0.0: expected a finite number above 0"),
        (lambda: KernelDensity(bandwidth=-1.0), "bandwidth -1.0"),
        (lambda: KernelDensity(bandwidth=math.nan), "bandwidth nan"),
        (lambda: KernelDensity(bandwidths=[]), "no bandwidth"),
        (lambda: KernelDensity().fit(model, batches(x, y)).sweep(x, [1.0, 0.0]), "bandwidth 0.0"),
        (lambda: KernelDensity().fit(model, [(x[y > 0], y[y > 0])]), "class 0 has 0 samples.*1 of 3 classes"),
        (lambda: KernelDensity().fit(model, [(x[:4], y[:4])]), "class 1 has 1 samples.*expected 2 or more"),
        (lambda: KernelDensity().fit(model, [(x, y + 1)]), "labels from 1 to 3: expected 0 to 2"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert KernelDensity(bandwidth=1.0).fit(model, [(x[:3], y[:3])]).score(x).isfinite().all()


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    x, y = clusters(500, 64, 5)
    cpu = KernelDensity().fit(Given(64, 5), batches(x, y))
    gpu = KernelDensity().fit(Given(64, 5).cuda(), batches(x, y))
    assert gpu.chosen == cpu.chosen
    torch.testing.assert_close(gpu.score(x), cpu.score(x), rtol=1e-10, atol=1e-8)
