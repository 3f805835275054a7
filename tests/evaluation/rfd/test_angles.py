"""Angles between features, on vectors whose angle is known."""

from __future__ import annotations

import math

import pytest
import torch

from robustfast.evaluation.rfd.angles import PART, angles
from robustfast.evaluation.rfd.threat import pgd


def test_angles_that_are_known() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [3.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[5.0, 0.0], [0.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    found = angles(z, other)
    assert found[:4].tolist() == pytest.approx([0.0, math.pi / 2, math.pi / 4, math.pi])
    assert found[4].isnan()


def test_small_angles_are_not_lost() -> None:
    # cos(1e-5) is 1 - 5e-11: in float32 it is 1, and its arccos zero.
    turned = torch.tensor([[math.cos(1e-5), math.sin(1e-5)]], dtype=torch.float64)
    assert angles(torch.tensor([[1.0, 0.0]]), turned).item() == pytest.approx(1e-5, rel=1e-9)


def test_the_part_says_what_a_direct_call_says(context_of) -> None:
    context = context_of("rfd", images=30)
    numbers = PART.make(context).numbers
    model = context.run.model
    ((x, y, positions),) = context.batches()
    x_adv = pgd(model.way("r"), 0.1)(x, y, positions)
    with torch.no_grad():
        z, z_adv = model.encode(x, "rn"), model.encode(x_adv, "rn")
    for name in "rn":
        cosine = torch.cosine_similarity(z[name].double(), z_adv[name].double())
        assert numbers[name] == pytest.approx(cosine.clamp(-1, 1).arccos().mean().item(), rel=1e-6)
    assert numbers["r"] > 0
    assert numbers["ratio"] == pytest.approx(numbers["n"] / numbers["r"])
    assert numbers["undefined"] == 0
    settings = numbers["attack"]
    assert {name: settings[name] for name in ("name", "norm", "eps", "steps", "relative_step", "loss")} == {
        "name": "pgd",
        "norm": "linf",
        "eps": 0.1,
        "steps": 20,
        "relative_step": 0.25,
        "loss": "ce",
    }
