"""Mahalanobis distance to Gaussians that are known, and against a dense computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from given_features import Given, batches, clusters
from sklearn.covariance import EmpiricalCovariance
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.evaluation.detectors import Mahalanobis, part_model
from robustfast.models import NETWORKS


def dense(queries: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """max_c -1/2 (f - mu_c)^T P (f - mu_c) with scikit-learn's covariance, float64 [N]."""
    means = torch.stack([x[y == c].double().mean(0) for c in range(int(y.max()) + 1)])
    centred = x.double() - means[y]
    precision = torch.from_numpy(EmpiricalCovariance().fit(centred.numpy()).precision_)
    apart = queries.double()[:, None] - means
    return -0.5 * torch.einsum("nci,ij,ncj->nc", apart, precision, apart).min(1).values


def test_equal_to_a_dense_computation_on_500_points() -> None:
    x, y = clusters(500, 64, 5)
    # Far from the origin and of unequal spread, where sums of squares lose digits.
    x = x @ torch.diag(torch.logspace(-1, 1, 64)) + 100
    queries = clusters(100, 64, 5, seed=1)[0] + 100
    detector = Mahalanobis("features").fit(Given(64, 5), batches(x, y))
    found = detector.score(queries)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0], dense(queries, x, y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(detector.score(x)[:, 0], dense(x, x, y), rtol=1e-7, atol=1e-7)


def test_a_known_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
    means = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64)
    y = torch.arange(60_000) % 3
    noise = torch.randn(len(y), 3, dtype=torch.float64, generator=generator)
    x = (means[y] + noise @ torch.linalg.cholesky(covariance).T).float()
    detector = Mahalanobis("features").fit(Given(3, 3), batches(x, y, 1000))
    torch.testing.assert_close(detector.means["features"], means, atol=0.04, rtol=0)
    expected = torch.linalg.inv(covariance)
    torch.testing.assert_close(detector.precisions["features"], expected, atol=0.05, rtol=0)
    # Twice the score of a class's own samples is chi-squared with 3 degrees of freedom: 3 on average, less for the best
    # of the classes.
    assert -2 * detector.score(x).mean().item() == pytest.approx(3, rel=0.03)
    at = detector.score(means.float())
    assert at.abs().max() < 1e-3


def test_batches_change_nothing() -> None:
    x, y = clusters(500, 16, 4)
    first, *others = (
        Mahalanobis("features", batch_size=size).fit(Given(16, 4), batches(x + 30, y, pieces)).score(x[:90])
        for size, pieces in ((100, 500), (7, 33), (1, 64))
    )
    for found in others:
        torch.testing.assert_close(found, first, rtol=1e-9, atol=1e-9)


def test_directions_without_spread_are_left_out() -> None:
    """A feature that is always 0, as a dead ReLU's, and one that is another's copy."""
    x, y = clusters(300, 6, 3)
    x[:, 4] = 0
    x[:, 5] = x[:, 3]
    found = Mahalanobis("features").fit(Given(6, 3), batches(x, y)).score(x)[:, 0]
    torch.testing.assert_close(found, dense(x[:, :4], x[:, :4], y), rtol=1e-7, atol=1e-7)


def test_the_step_is_towards_the_best_class() -> None:
    x, y = clusters(400, 4, 3)
    detector = Mahalanobis("features", magnitude=0.05).fit(Given(4, 3), batches(x, y))
    queries = clusters(40, 4, 3, seed=1)[0]
    means, precision = detector.means["features"], detector.precisions["features"]
    apart = queries.double()[:, None] - means
    best = torch.einsum("nci,ij,ncj->nc", apart, precision, apart).argmin(1)
    # By hand: the gradient of 1/2 d^T P d is P d.
    direction = (apart[torch.arange(40), best] @ precision).sign()
    moved = queries - 0.05 * direction.float()
    expected = Mahalanobis("features").fit(Given(4, 3), batches(x, y)).score(moved)
    torch.testing.assert_close(detector.score(queries), expected, rtol=1e-6, atol=1e-6)
    swept = detector.sweep(queries, (0.0, 0.05))
    assert torch.equal(swept[0.05], detector.score(queries))
    assert (swept[0.05] > swept[0.0]).all(), "a step towards a class brings it nearer"


def test_each_layer_has_a_step_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    x, y = clusters(200, 5, 3)
    both = Mahalanobis(["1", "3"], magnitude=0.1).fit(model, batches(x, y)).score(x)
    for column, layer in enumerate("13"):
        alone = Mahalanobis(layer, magnitude=0.1).fit(model, batches(x, y)).score(x)
        assert torch.equal(both[:, column], alone[:, 0])


def test_a_step_of_pixels_is_one_of_normalised_images_over_std() -> None:
    std, mean = torch.tensor([0.2, 0.3, 0.25]), torch.tensor([0.4, 0.5, 0.45])
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).double()

    def normalised(x: Tensor) -> Tensor:
        return (x - mean[:, None, None]) / std[:, None, None]

    x, y = torch.rand(30, 3, 8, 8, dtype=torch.float64), torch.arange(30) % 3
    pixels = Mahalanobis("0", magnitude=0.01, input=normalised).fit(inner, batches(x, y))
    others = Mahalanobis("0", magnitude=0.01, std=std.tolist()).fit(inner, batches(normalised(x), y))
    torch.testing.assert_close(others.score(normalised(x)), pixels.score(x), rtol=1e-5, atol=1e-5)
    assert (pixels.score(x) - pixels.sweep(x, [0.0])[0.0]).abs().min() > 1e-6


def test_the_gradient_goes_through_the_auto_encoder() -> None:
    """Of x - G(x) it is not the gradient at x: G's part is in it."""
    torch.manual_seed(0)
    network = NETWORKS["digits_vae_rn"]("digits_cnn", num_classes=3, in_channels=1).eval()
    x, y = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
    model = part_model(network, "r")
    layer = "network.classifier_r.classifier:input"
    detector = Mahalanobis(layer, magnitude=0.02).fit(model, batches(x, y))
    means, precision = detector.means[layer], detector.precisions[layer]

    def distance(images: Tensor) -> Tensor:
        features = network.classifier("r").encoder(network.part(images, "r")).double()
        apart = features[:, None] - means
        return torch.einsum("nci,ij,ncj->nc", apart, precision, apart).min(1).values

    images = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(images).sum(), images)
    moved = x - 0.02 * gradient.sign()
    with torch.no_grad():
        expected = -0.5 * distance(moved)
    torch.testing.assert_close(detector.score(x)[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_its_state_is_read_back() -> None:
    x, y = clusters(90, 4, 3)
    detector = Mahalanobis("features").fit(Given(4, 3), batches(x, y))
    other = Mahalanobis().load_state_dict(detector.state_dict(), Given(4, 3))
    assert torch.equal(other.score(x), detector.score(x))


def test_mistakes_end_in_one_line() -> None:
    x, y = clusters(30, 4, 3)
    cases = [
        (lambda: Mahalanobis(magnitude=-0.1), "magnitude -0.1: expected 0 or more"),
        (lambda: Mahalanobis(magnitude=np.nan), "magnitude nan"),
        (lambda: Mahalanobis(std=(0.2, 0.0)), r"std \(0.2, 0.0\): expected numbers above 0"),
        (lambda: Mahalanobis("features").fit(Given(4, 3), [(x[y < 2], y[y < 2])]), "class 2 has 0 samples"),
        (lambda: Mahalanobis("features").fit(Given(4, 3), [(x, y - 1)]), "labels from -1 to 1"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    x, y = clusters(500, 64, 5)
    cpu = Mahalanobis("features", magnitude=0.01).fit(Given(64, 5), batches(x, y))
    gpu = Mahalanobis("features", magnitude=0.01).fit(Given(64, 5).cuda(), batches(x, y))
    torch.testing.assert_close(gpu.score(x), cpu.score(x), rtol=1e-8, atol=1e-8)
