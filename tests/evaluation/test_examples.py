"""Example images show many classes, and attacked ones are those that an evaluation meets."""

import pytest
import torch

from robustfast.attacks import AttackConfig
from robustfast.data import load
from robustfast.evaluation.attacks import EvaluationAttack
from robustfast.evaluation.examples import make_examples, one_of_each
from robustfast.models import ThreeWay


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        ([2, 2, 0, 1, 0], 3, [2, 3, 0]),  # one of each class
        ([2, 2, 0, 1, 0], 5, [2, 3, 0, 4, 1]),  # then second ones
        ([0, 1, 2, 3], 2, [0, 2]),  # classes at even distances
        ([7], 1, [0]),
        ([5, 5, 5], 2, [0, 1]),
    ],
)
def test_classes_come_before_repeats(labels, count, expected):
    assert one_of_each(torch.tensor(labels), count).tolist() == expected


def look(norm="linf", positions=(4, 9, 2), ways="srn", **fields):
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).eval()
    split = load("digits", "test")
    x = split.images.float() / split.scale
    chosen = torch.tensor(positions)
    attack = EvaluationAttack("a", AttackConfig(0.1, 0.05, 3, norm, **fields))
    found = make_examples(model, ways, x[chosen], split.labels[chosen], chosen, attack)
    return model, x, split.labels, attack, found


def test_attacked_images_are_those_of_an_evaluation_of_the_whole_split():
    model, x, y, attack, found = look()
    whole = attack.build(model, "srn")(x[:16], y[:16], torch.arange(16))
    for way in found.ways:
        torch.testing.assert_close(way.adversarial, whole[way.way][found.positions], rtol=0, atol=1e-6)
        with torch.no_grad():
            assert torch.equal(way.attacked, model.way(way.way)(way.adversarial).argmax(1))
            assert torch.equal(way.natural, model.way(way.way)(found.images).argmax(1))


def test_linf_perturbations_reach_black_and_white_at_eps():
    _, _, _, _, found = look()
    assert found.magnification == pytest.approx(5.0)
    for way in found.ways:
        change = way.adversarial - found.images
        torch.testing.assert_close(way.perturbation, 0.5 + 5 * change, atol=1e-5, rtol=0)
        assert way.perturbation.min() >= 0
        assert way.perturbation.max() <= 1


def test_other_norms_are_magnified_by_the_largest_change():
    _, _, _, _, found = look("l2", step="grad")
    changes = [(way.adversarial - found.images).abs().max() for way in found.ways]
    assert found.magnification == pytest.approx(0.5 / float(max(changes)))


def test_only_trained_ways_are_seen():
    _, _, _, _, found = look(ways="r", positions=(0,))
    assert [way.way for way in found.ways] == ["r"]


def test_no_change_is_not_magnified_to_infinity():
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).eval()
    attack = EvaluationAttack("none", AttackConfig(0.0, 0.0, 1))
    found = make_examples(model, "r", torch.rand(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]), attack)
    assert found.magnification == 1.0
    assert torch.all(found.ways[0].perturbation == 0.5)
