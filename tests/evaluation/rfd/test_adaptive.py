"""Attacks on classifier and discriminator together, on a linear toy whose answers are known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from robustfast.evaluation.rfd.adaptive import PART, WEIGHTS, attacks, report, strongest
from robustfast.evaluation.rfd.judge import Judge, judge, judged_clean

EPS = 0.1


class Toy(nn.Module):
    """Features are the pixels."""

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        self.classifier = _linear(classes)

    def encode(self, x: Tensor, which: str) -> dict[str, Tensor]:
        return dict.fromkeys(which, x.flatten(1) - 0.5)


def _linear(weight: Tensor, bias: float = 0.0) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight))
    layer.weight.data.copy_(weight)
    layer.bias.data.fill_(bias)
    return layer


def toy(discriminator: list[float], bias: float) -> Judge:
    """Class 1 leads by 2 (p_0 + p_1), pixels counted from grey; the discriminator is given."""
    classes = torch.tensor([[-1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    return Judge(Toy(classes), _linear(torch.tensor([discriminator]), bias))


# Class 0 by 0.2, which is 0.1 of two pixels that each count twice: eps turns it, to 0.2 the other way.
X = torch.full((3, 1, 2, 2), 0.5)
X[:, 0, 0] -= 0.05
Y = torch.zeros(3, dtype=torch.int64)


def found(both: Judge, attack: object) -> dict[str, Tensor]:
    x_adv = attack(X, Y, torch.arange(3))  # type: ignore[operator]
    assert (x_adv - X).abs().max() <= EPS + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    logits, score = both.classify(x_adv)
    return {"margin": logits[:, 1] - logits[:, 0], "score": score}


def test_both_aims_are_reached_where_they_do_not_conflict() -> None:
    # Other pixels decide: an attack on the classifier leaves the judgement to its start.
    both = toy([0.0, 0.0, 1.0, 1.0], -0.15)
    assert not judged_clean(both.classify(X)[1]).any()
    by_name = {name: found(both, attack) for name, attack in attacks(both, EPS).items()}
    assert list(by_name) == ["without", *(f"weight {weight:g}" for weight in WEIGHTS), "both"]
    clean = torch.zeros(2)
    assert report(clean, by_name["without"])["both"] == 0.0
    assert report(clean, by_name["both"]) == {"fooled": 1.0, "detected": 0.0, "both": 1.0, "auroc": 0.0}
    # All that eps allows, by hand: 2 * (-0.1 + 0.2) and 0.2 - 0.15.
    assert by_name["weight 1"]["margin"].tolist() == pytest.approx([0.2] * 3, abs=1e-5)
    assert by_name["weight 1"]["score"].tolist() == pytest.approx([0.05] * 3, abs=1e-5)
    assert strongest(by_name)["score"].tolist() == pytest.approx([0.05] * 3, abs=1e-5)


def test_aims_that_exclude_each_other_are_not_counted_together() -> None:
    # Whatever fools the classifier is seen: D = -(p_0 + p_1) - 0.02, the margin 2 (p_0 + p_1).
    both = toy([-1.0, -1.0, 0.0, 0.0], -0.02)
    by_name = {name: found(both, attack) for name, attack in attacks(both, EPS).items()}
    assert report(torch.ones(2), by_name["without"]) == {
        "fooled": 1.0,
        "detected": 1.0,
        "both": 0.0,
        "auroc": 1.0,
    }
    assert report(torch.ones(2), strongest(by_name))["both"] == 0.0
    # A heavy discriminator gives up the class.
    assert report(torch.ones(2), by_name["weight 10"])["detected"] == 0.0
    # The middle, where both miss by as little: 2 s = -s - 0.02.
    best = strongest({"both": by_name["both"]})
    assert torch.minimum(best["margin"], best["score"]).tolist() == pytest.approx([-0.04 / 3] * 3, abs=2e-3)


def test_the_strongest_attack_of_each_image_is_counted() -> None:
    by_name = {
        "a": {"margin": torch.tensor([5.0, 1.0, -1.0, -0.1]), "score": torch.tensor([-1.0, 0.5, 9.0, -0.5])},
        "b": {"margin": torch.tensor([0.1, 2.0, -2.0, -3.0]), "score": torch.tensor([0.2, 0.4, 8.0, 0.1])},
    }
    best = strongest(by_name)
    # The last image cannot be fooled: that it passes counts before how little it lacks.
    assert best["margin"].tolist() == pytest.approx([0.1, 1.0, -1.0, -3.0])
    assert best["score"].tolist() == pytest.approx([0.2, 0.5, 9.0, 0.1])
    assert report(torch.tensor([1.0]), best) == pytest.approx(
        {"fooled": 0.5, "detected": 0.0, "both": 0.5, "auroc": 3 / 4}
    )
    # A margin of zero fools nobody, a score of zero passes.
    edge = {"margin": torch.tensor([0.0, 1.0]), "score": torch.tensor([1.0, 0.0])}
    assert report(torch.tensor([1.0]), edge)["both"] == 0.5


def test_the_part_on_a_run(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustfast.evaluation.rfd.adaptive.STEPS", 5)
    context = context_of("rfd", images=40)
    numbers = PART.make(context).numbers
    both = judge(context.run)
    ((x, y, positions),) = context.batches()
    attack = attacks(both, 0.1)["both"]
    with torch.no_grad():
        logits, score = both.classify(attack(x, y, positions))
    fooled, passed = logits.argmax(1) != y, score >= 0
    assert numbers["both"]["fooled"] == pytest.approx(fooled.double().mean().item())
    assert numbers["both"]["both"] == pytest.approx((fooled & passed).double().mean().item())
    several = [numbers["without"], numbers["both"], *numbers["weights"].values()]
    assert numbers["strongest"]["both"] >= max(one["both"] for one in several)
    assert list(numbers["weights"]) == ["0.1", "1", "10"]
    assert "collapse" in numbers["expected"]
    described = {name: (found["name"], found["steps"]) for name, found in numbers["attacks"].items()}
    assert described == {
        "without": ("pgd", 20),
        **{f"weight {weight:g}": ("pgd", 5) for weight in WEIGHTS},
        "both": ("apgd", 5),
    }
    json.dumps(numbers, allow_nan=False)
