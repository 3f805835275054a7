"""The protocol's split, its regression, and what it chooses by."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors import Samples, known_attack, unseen_attack
from robustfast.evaluation.detectors.metrics import metrics
from robustfast.evaluation.detectors.regression import regression, scores, split


def samples(
    count: int, gap: float, *, seed: int = 0, layers: int = 2, positions: Tensor | None = None
) -> Samples:
    """Scores of which the adversarial ones are lower by `gap` in each layer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, count, layers, generator=generator, dtype=torch.float64)
    return Samples(drawn[0], drawn[1], drawn[2] - gap, positions)


def test_the_split_is_the_protocol_s() -> None:
    rows = split(1000)
    assert rows.fit.tolist() == list(range(50))
    assert rows.validation.tolist() == list(range(50, 100))
    assert rows.test.tolist() == list(range(100, 1000))
    rows = split(119, pool=0.5)
    assert (len(rows.fit), len(rows.validation), len(rows.test)) == (29, 30, 60)
    for count, pool in ((99, 0.1), (1000, 0.009), (1000, 1.0)):
        with pytest.raises(UserError, match=f"^{count} images with a pool of {pool:g}: expected 5 or more"):
            split(count, pool)


def test_the_regression_finds_the_layers_that_tell() -> None:
    """Adversarial scores are lower in one layer, higher in another of another scale, and no different in the third."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1e4, 1.0], dtype=torch.float64)
    clean = torch.randn(400, 3, generator=generator, dtype=torch.float64) * scale
    adversarial = (
        torch.randn(200, 3, generator=generator, dtype=torch.float64) + torch.tensor([-2.0, 2.0, 0])
    ) * scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = regression(clean, adversarial)
    weights = model[-1].coef_.ravel()
    assert weights[0] < -1
    assert weights[1] > 1
    assert abs(weights[2]) < 0.3
    assert model[-1].Cs == 10
    assert model[-1].cv == 5
    assert model[-1].solver == "lbfgs"
    # -log odds rank as -P does.
    probability = model.predict_proba(clean.numpy())[:, 1]
    assert (scores(model, clean).argsort() == torch.from_numpy(-probability).argsort()).all()
    assert metrics(scores(model, clean), scores(model, adversarial))["auroc"] > 0.95


def test_the_setting_is_chosen_by_validation_and_tested_on_the_rest() -> None:
    weak, strong = samples(300, 0.5), samples(300, 2.0)
    # In the pool's second half alone `late` tells, elsewhere nothing does.
    late = samples(300, 0.0, seed=1)
    late.adversarial[15:30] -= 9
    late.adversarial[:15] -= 0.2
    found = known_attack({10: weak, 20: strong})
    assert found.setting == 20
    assert found.validation[20] > found.validation[10]
    assert found.kept == 300
    # By hand: fit on rows 0-14, tested on 30-299, clean and noisy together against adversarial.
    model = regression(*strong.rows(torch.arange(15)))
    clean, adversarial = strong.rows(torch.arange(30, 300))
    assert len(clean) == 2 * len(adversarial) == 540
    expected = metrics(scores(model, clean), scores(model, adversarial))
    assert found.metrics == pytest.approx(expected)
    assert found.as_dict() == {**found.metrics, "kept": 300, "setting": 20}
    assert 0.9 < found.metrics["auroc"] < 1
    chosen = known_attack({1: weak, 2: late})
    assert chosen.setting == 2
    assert chosen.metrics["auroc"] < 0.7, "what was chosen by was tested too"


def test_one_score_ranks_as_itself() -> None:
    """A single detector's score goes through the regression without changing the order."""
    one = samples(200, 1.5, layers=1)
    found = known_attack({0.26: one})
    rest = torch.arange(20, 200)
    clean, adversarial = one.rows(rest)
    assert found.metrics == pytest.approx(metrics(clean[:, 0], adversarial[:, 0]))


def test_an_unseen_attack_is_judged_by_what_was_fit_on_another() -> None:
    seen, other = samples(400, 2.0), samples(200, 1.0, seed=1)
    found = unseen_attack({5: seen}, {5: other})
    model = regression(*seen.rows(torch.arange(20)))
    expected = metrics(*(scores(model, part) for part in other.rows(torch.arange(20, 200))))
    assert found.metrics == pytest.approx(expected)
    assert found.kept == 200
    # The other attack's own choice would be the second setting; the one seen decides.
    turned = Samples(other.clean, other.noisy, other.clean - 10)
    chosen = unseen_attack({1: seen, 2: samples(400, 0.1)}, {1: other, 2: turned})
    assert chosen.setting == 1


def test_images_of_the_pool_are_not_tested_under_another_attack() -> None:
    seen = samples(100, 2.0, positions=torch.arange(0, 200, 2))
    # Its test rows 10-99 are the images 0-89: those of the pool are 0, 2, ..., 18.
    other = samples(100, 2.0, seed=1, positions=torch.arange(-10, 90))
    found = unseen_attack({5: seen}, {5: other})
    rows = torch.tensor([row for row in range(10, 100) if row - 10 not in range(0, 20, 2)])
    model = regression(*seen.rows(torch.arange(5)))
    assert found.metrics == pytest.approx(metrics(*(scores(model, part) for part in other.rows(rows))))


def test_mistakes_end_in_one_line() -> None:
    good = samples(100, 1.0)
    cases = [
        (lambda: Samples(good.clean, good.noisy[1:], good.adversarial), r"expected \[N, layers\] thrice"),
        (lambda: Samples(*(part[:, 0] for part in (good.clean, good.noisy, good.adversarial))), "thrice"),
        (lambda: known_attack({}), "no candidate"),
        (lambda: known_attack({1: samples(40, 1.0)}), "40 images with a pool of 0.1"),
        (lambda: unseen_attack({1: good}, {2: good}), r"settings \[1\] of the attack seen and \[2\]"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
