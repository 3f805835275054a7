"""Confusions are counted by true class and by what it was taken for."""

import torch

from robustfast.evaluation.confusion import confusion, confusions
from robustfast.evaluation.predictions import AttackedPredictions, Predictions


def test_entries_count_true_class_by_prediction():
    found = confusion(torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 0]), 4)
    assert found.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]


def test_every_way_is_counted_natural_and_attacked_through_itself():
    labels = torch.tensor([0, 1])
    predictions = Predictions(
        labels,
        {"r": torch.tensor([0, 1]), "n": torch.tensor([1, 1])},
        {
            "a": AttackedPredictions(
                own={"r": torch.tensor([0, 0]), "n": torch.tensor([1, 0])},
                standard={"r": torch.tensor([1, 1]), "n": torch.tensor([1, 1])},
            )
        },
    )
    found = confusions(predictions, 2)
    assert found.images == 2
    assert {way: matrix.tolist() for way, matrix in found.natural.items()} == {
        "r": [[1, 0], [0, 1]],
        "n": [[0, 1], [0, 1]],
    }
    assert {way: matrix.tolist() for way, matrix in found.attacked.items()} == {
        "r": [[1, 0], [1, 0]],
        "n": [[0, 1], [1, 0]],
    }
