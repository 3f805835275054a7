"""Nearest neighbours: sklearn's vote, ties told, and the numbers of the part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from robustfast.evaluation.rfd import knn
from robustfast.evaluation.rfd.knn import PART, nearest_vote
from robustfast.evaluation.rfd.threat import pgd


def features(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("k", [1, 4, 50])
def test_the_vote_is_sklearns(k: int) -> None:
    bank, queries = features(120, 0), features(70, 1)
    labels = torch.randint(4, (120,), generator=torch.Generator().manual_seed(2))
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(bank.numpy(), labels.numpy())
    expected = theirs.predict(queries.numpy()).tolist()
    # An even k has equal votes: both name the lowest class.
    for chunk in (1, 32, 1024):
        assert nearest_vote(bank, labels, queries, k=k, chunk=chunk).tolist() == expected


def test_the_angle_decides_and_not_the_length() -> None:
    bank = torch.tensor([[100.0, 0.0], [0.0, 0.1], [0.0, 0.2]])
    labels = torch.tensor([2, 0, 0])
    assert nearest_vote(bank, labels, torch.tensor([[0.1, 0.01], [9.0, 10.0]]), k=1).tolist() == [2, 0]
    assert nearest_vote(bank, labels, torch.tensor([[1.0, 0.0]]), k=3).tolist() == [0]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k is {k}, expected 1 to 3"):
            nearest_vote(bank, labels, bank, k=k)


@pytest.mark.parametrize("method", ["rfd", "um"])
def test_the_part_counts_as_a_direct_call_does(
    context_of, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(knn, "K", 20)
    context = context_of(method, images=40)
    model = context.run.model
    classify, feature = (
        (model.way("r"), lambda x: model.encode(x, "r")["r"]) if method == "rfd" else (model, model.features)
    )
    numbers = PART.make(context).numbers
    ((x, y, positions),) = context.batches()
    training = context.training_split
    with torch.no_grad():
        bank = feature(training.images / training.scale)
        for name, images in {"clean": x, "pgd": pgd(classify, 0.1)(x, y, positions)}.items():
            similar = F.normalize(feature(images), dim=1) @ F.normalize(bank, dim=1).T
            votes = F.one_hot(training.labels[similar.topk(20).indices], 10).sum(1)
            assert numbers[name]["knn"] == (votes.argmax(1) == y).double().mean().item()
            assert numbers[name]["softmax"] == (classify(images).argmax(1) == y).double().mean().item()
    assert (numbers["k"], numbers["bank"], numbers["eps"]) == (20, 1438, 0.1)


def test_a_small_bank_is_said(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "K", 2000)
    result = PART.make(context_of("um", images=10))
    assert result.numbers["k"] == result.numbers["bank"] == 1438
    assert "k is 2000 in the paper" in result.tables[0].caption
