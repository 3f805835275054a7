"""The protocol's arithmetic on predictions that were made by hand."""

import pytest
import torch

from robustfast.evaluation.metrics import accuracy, detection, dia, flagged

LABELS = torch.tensor([0, 1, 2, 3])


def test_accuracy_is_the_share_of_right_labels():
    assert accuracy(torch.tensor([0, 1, 2, 0]), LABELS) == 0.75
    # Three of seven is no float32: the fraction keeps float64.
    assert accuracy(torch.tensor([1, 1, 1, 0, 0, 0, 0]), torch.ones(7, dtype=torch.int64)) == 3 / 7


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), LABELS, r"\[3\] and \[4\]"),
        (torch.zeros(4, 1, dtype=torch.int64), LABELS, r"\[4, 1\] and \[4\]"),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), "no images"),
    ],
)
def test_accuracy_refuses_what_it_cannot_count(predicted, labels, words):
    with pytest.raises(ValueError, match=words):
        accuracy(predicted, labels)


def test_dia_is_robust_minus_non_robust():
    assert dia(0.875, 0.25) == 0.625
    assert dia(0.25, 0.875) == -0.625
    assert dia(None, 0.5) is None
    assert dia(0.5, None) is None


def test_flagged_is_disagreement_of_robust_and_non_robust():
    ways = {"s": LABELS, "r": torch.tensor([0, 1, 2, 2]), "n": torch.tensor([0, 2, 2, 3])}
    assert flagged(ways).tolist() == [False, True, False, True]


def test_detection_by_hand():
    natural = {
        "s": torch.tensor([0, 1, 2, 0]),  # 3 of 4 right
        "r": torch.tensor([0, 1, 2, 3]),
        "n": torch.tensor([0, 1, 2, 0]),  # disagrees on image 3: one false alarm, which r puts right
    }
    adversarial = {
        "s": torch.tensor([0, 2, 0, 0]),  # 1 of 4 right
        "r": torch.tensor([0, 1, 0, 3]),
        "n": torch.tensor(
            [1, 2, 0, 0]
        ),  # disagrees on 0, 1 and 3, all right under r; 2 is missed and stays wrong
    }
    mixture, half = detection(natural, adversarial, LABELS)
    assert mixture == {
        "tpr": 0.75,
        "fpr": 0.25,
        "balanced_accuracy": 0.75,
        "raw": (3 + 1) / 8,
        "calibrated": (4 + 3) / 8,
    }
    assert half == {"tpr": 0.75, "fpr": None, "balanced_accuracy": None, "raw": 0.25, "calibrated": 0.75}


def test_detector_that_flags_everything_or_nothing_is_worth_a_coin():
    same = {"s": LABELS, "r": LABELS, "n": LABELS}
    apart = {"s": LABELS, "r": LABELS, "n": (LABELS + 1) % 4}
    for ways, rate in ((same, 0.0), (apart, 1.0)):
        mixture, _ = detection(ways, ways, LABELS)
        assert (mixture["tpr"], mixture["fpr"], mixture["balanced_accuracy"]) == (rate, rate, 0.5)
