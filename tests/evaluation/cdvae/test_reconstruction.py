"""Reconstruction accuracy by both definitions, against a computation without the part."""

from __future__ import annotations

import pytest
import torch

from robustfast.evaluation.cdvae.reconstruction import PART, unexplained


def test_what_a_part_leaves_by_hand() -> None:
    x = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 2.0]]]])
    part = torch.tensor([[[[3.0, 4.0]]], [[[1.0, 2.0]]]])
    assert unexplained(x, part).tolist() == [0.0, 0.5]


def test_the_numbers_are_those_of_a_direct_computation(context_of) -> None:
    context = context_of("cdvae", images=50, batch_size=16)
    result = PART.make(context)
    numbers = result.numbers
    x, y = (torch.cat([batch[k] for batch in context.batches()]) for k in (0, 1))
    with torch.no_grad():
        split = context.run.model.split(x)
        right = context.run.model.way("n")(x).argmax(1) == y
    whole = split.x.flatten(1).double()
    # R(x) lacks of x what G(x) is, and the other way round.
    for name, lacking in (("g", split.r), ("r", split.g)):
        ratio = lacking.flatten(1).double().norm(dim=1) / whole.norm(dim=1)
        for key, expected in (("accuracy", 1 - ratio), ("squared", 1 - ratio**2)):
            found = numbers[name][key]
            assert found["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
            assert found["std"] == pytest.approx(expected.std(correction=0).item(), abs=1e-6)
    assert numbers["classification"] == {"r": right.double().mean().item()}
    assert numbers["classification"]["r"] > 0.5
    assert not (context.folder / "cdvae-reconstruction.partial").exists()


def test_the_squared_ratio_is_the_higher_accuracy(context_of) -> None:
    numbers = PART.make(context_of("g", images=20)).numbers
    assert numbers["g"]["squared"]["mean"] > numbers["g"]["accuracy"]["mean"] > 0
    assert set(numbers["classification"]) == {"g"}


def test_runs_without_g_have_no_such_part(context_of) -> None:
    context = context_of("x")
    assert "no auto-encoder" in PART.obstacle(context.run, context.request)
