"""Likeness of parts: the Frechet distance of Gaussians that are known, cosines, and whose features they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGDC
from robustfast.errors import UserError
from robustfast.evaluation.cdvae import similarity
from robustfast.evaluation.cdvae.similarity import (
    PART,
    ClassifierFeatures,
    frechet_distance,
)
from robustfast.evaluation.cdvae.threat import linf
from robustfast.models import ClassDisentangled


def _with_moments(mean: Tensor, covariance: Tensor, count: int, seed: int) -> Tensor:
    """[count, 3] whose mean and unbiased covariance are exactly those."""
    draw = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draw -= draw.mean(0)
    white = draw @ torch.linalg.inv(torch.linalg.cholesky(draw.T.cov())).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_distance_of_known_gaussians() -> None:
    one, other = torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), torch.eye(3).double()
    mean = torch.tensor([1.0, 2.0, 2.0]).double()
    distance = frechet_distance(3)
    for images in _with_moments(mean, one, 40, 0).split(15):
        distance.update(images, real=True)
    distance.update(_with_moments(torch.zeros(3).double(), other, 25, 1), real=False)
    # |m|^2 = 9, and (sigma - 1)^2 of each axis: 0, 1, 4.
    assert distance.compute().item() == pytest.approx(14.0, rel=1e-9)


def test_distance_of_gaussians_that_do_not_commute() -> None:
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]).double()
    one = torch.diag(torch.tensor([1.0, 4.0, 2.0]).double())
    other = turn @ torch.diag(torch.tensor([3.0, 1.0, 2.0]).double()) @ turn.T
    distance = frechet_distance(3)
    distance.update(_with_moments(torch.zeros(3).double(), one, 30, 0), real=True)
    distance.update(_with_moments(torch.zeros(3).double(), other, 30, 1), real=False)
    # The symmetric form: tr (S^1/2 S' S^1/2)^1/2.
    root = one.sqrt()
    middle = torch.linalg.eigvalsh(root @ other @ root).sqrt().sum()
    assert distance.compute().item() == pytest.approx(
        (one + other).trace().item() - 2 * middle.item(), rel=1e-9
    )


def test_the_numbers_are_those_of_a_direct_computation(context_of) -> None:
    context = context_of("cdvae", images=40, batch_size=17)
    result = PART.make(context)
    numbers = result.numbers
    model = context.run.model
    pairs: list[tuple[ClassDisentangled, ...]] = []
    for x, y, positions in context.batches():
        x_adv = PGDC(model.way("n"), linf(context.run), steps=20)(x, y, positions)
        with torch.no_grad():
            pairs.append((model.split(x), model.split(x_adv)))
    for part in "gr":
        one, other = (torch.cat([getattr(pair[k], part) for pair in pairs]) for k in (0, 1))
        cosine = torch.cosine_similarity(one.flatten(1).double(), other.flatten(1).double())
        assert numbers[part]["cosine"]["mean"] == pytest.approx(cosine.mean().item(), abs=1e-6)
        assert numbers[part]["cosine"]["std"] == pytest.approx(cosine.std(correction=0).item(), abs=1e-6)
        with torch.no_grad():
            a, b = (model.classifier("r").features(images).double() for images in (one, other))
        product = a.T.cov() @ b.T.cov()
        trace = (a.T.cov() + b.T.cov()).trace() - 2 * torch.linalg.eigvals(product).sqrt().real.sum()
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + trace
        assert numbers[part]["distance"] == pytest.approx(expected.item(), rel=1e-4)
    assert numbers["features"] == "classifier"
    table = result.tables[0]
    assert table.columns[2].header == "Frechet distance of D's features"
    assert "--inception-weights" in table.caption


def test_weights_make_it_the_fid(context_of, monkeypatch: pytest.MonkeyPatch, printed) -> None:
    seen = []

    class Small(nn.Module):
        num_features = 2

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)

    asked = []
    monkeypatch.setattr(similarity, "load_inception", lambda file, device: asked.append(file) or Small())
    context = context_of("cdvae", images=10, steps=1, inception_weights=Path("weights.pth"))
    result = PART.make(context)
    printed(*result.tables)
    assert asked == [Path("weights.pth")]
    assert result.numbers["features"] == "inception-v3 pool"
    assert result.tables[0].columns[2].header == "FID"
    ((x, _, _),) = context.batches()
    with torch.no_grad():
        g = context.run.model.split(x).g
    # Pixels again, cut to what an image holds.
    mean, std = (getattr(context.run.model.normalisation, name) for name in ("mean", "std"))
    assert torch.allclose(seen[0], (g * std + mean).clamp(0, 1))
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


def test_features_are_what_the_last_layer_sees(context_of) -> None:
    model = context_of("cdvae").run.model
    classifier = model.classifier("r")
    features = ClassifierFeatures(classifier)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = features(images)
        logits = classifier.classifier(found.float())
        assert torch.allclose(logits, classifier.ways(images, "r")["r"], atol=1e-5)
    assert found.shape == (3, features.num_features)
    assert found.dtype == torch.float64


def test_errors_in_one_line(context_of, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images 1: a distance of sets takes 2 images and more"):
        PART.make(context_of("cdvae", images=1))
    with pytest.raises(UserError, match=r"--inception-weights .*absent\.pth: cannot be read"):
        PART.make(context_of("cdvae", images=4, inception_weights=tmp_path / "absent.pth"))
