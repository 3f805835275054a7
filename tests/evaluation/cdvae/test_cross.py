"""Classifiers across parts: direct calls, and rows that are not there."""

from __future__ import annotations

import pytest
import torch

from robustfast.errors import UserError
from robustfast.evaluation.cdvae.classifiers import classifiers
from robustfast.evaluation.cdvae.cross import PART


def test_rows_are_trained_on_and_columns_tested_on(context_of, runs, printed) -> None:
    context = context_of("cdvae", images=60, batch_size=25, source=str(runs("x")), against=(str(runs("g")),))
    result = PART.make(context)
    numbers = result.numbers
    assert [list(numbers), *map(list, numbers.values())] == [["x", "r", "g"]] * 4
    x, y = (torch.cat([batch[k] for batch in context.batches()]) for k in (0, 1))
    with torch.no_grad():
        split = context.run.model.split(x)
        for trained, classifier in classifiers(context).items():
            for tested in "xrg":
                order = classifier(getattr(split, tested)).argsort(1, descending=True)
                found = numbers[trained][tested]
                assert found["top1"] == (order[:, 0] == y).double().mean().item()
                assert found["top5"] == (order[:, :5] == y[:, None]).any(1).double().mean().item()
    # Each classifier knows its own part best.
    for own in "xrg":
        assert numbers[own][own]["top1"] == max(cell["top1"] for cell in numbers[own].values())
    assert result.tables[0].caption is None
    printed(*result.tables)


def test_rows_that_are_not_there_are_said(context_of, runs) -> None:
    result = PART.make(context_of("cdvae", images=20, source=str(runs("x"))))
    assert list(result.numbers) == ["x", "r"]
    assert result.tables[0].caption == "no classifier of G(x) was named"


def test_one_classifier_is_no_table(context_of, runs) -> None:
    alone = context_of("cdvae", images=20)
    assert "needs classifiers of two parts" in PART.obstacle(alone.run, alone.request)
    with pytest.raises(UserError, match="part cross: needs classifiers of two parts: name runs of cdvae-x"):
        PART.make(alone)
    for request in ({"source": str(runs("x"))}, {"against": (str(runs("g")),)}):
        context = context_of("cdvae", images=20, **request)
        assert PART.obstacle(context.run, context.request) is None
    without = context_of("x", source=str(runs("g")))
    assert "no auto-encoder" in PART.obstacle(without.run, without.request)
