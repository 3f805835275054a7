"""The routed system, on decisions written by hand and on a run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustfast.errors import UserError
from robustfast.evaluation.rfd.judge import judge
from robustfast.evaluation.rfd.routed import PART, Routed, routed
from robustfast.evaluation.rfd.threat import pgd


def test_decisions_by_hand() -> None:
    robust = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])  # 0, 1, 2
    other = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # 2, 2, 0
    assert routed(robust, torch.tensor([4.0, -4.0, -0.1]), other).tolist() == [2, 1, 2]
    assert routed(robust, torch.tensor([-4.0, 4.0, 0.0]), other).tolist() == [0, 2, 0]


def test_the_part_says_what_direct_calls_say(context_of, runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustfast.evaluation.rfd.routed.STEPS", 5)
    context = context_of("rfd", images=40, source=str(runs("um")))
    # Between the images, so that both models are asked.
    both = judge(context.run)
    ((x, y, positions),) = context.batches()
    with torch.no_grad():
        middle = both.classify(x)[1].median().item()
    both.discriminator.layers[-1].bias.data -= middle
    monkeypatch.setattr("robustfast.evaluation.rfd.routed.judge", lambda run: both)
    numbers = PART.make(context).numbers
    source = context.source()
    way = context.run.model.way("r")
    images = {
        "clean": x,
        "adversarial": pgd(way, 0.1)(x, y, positions),
        "against_source": pgd(source, 0.1)(x, y, positions),
    }
    for name, shown in images.items():
        with torch.no_grad():
            score = both.discriminator(context.run.model.encode(shown, "d")["d"])[:, 0]
            robust, other = way(shown).argmax(1), source(shown).argmax(1)
        right = [(o if s >= 0 else r) == t for s, r, o, t in zip(score, robust, other, y, strict=True)]
        assert numbers[name] == pytest.approx(sum(map(int, right)) / 40)
        assert numbers["judged_clean"][name] == pytest.approx((score >= 0).double().mean().item())
        assert numbers["robust"][name] == pytest.approx((robust == y).double().mean().item())
        assert numbers["source"][name] == pytest.approx((other == y).double().mean().item())
    assert 0 < numbers["judged_clean"]["clean"] < 1
    # Whoever attacks the whole: an image is lost where either attack leaves it wrong.
    system = Routed(both, source)
    survives = routed(*system.split(x)) == y
    for attack in system.attacks(0.1).values():
        x_adv = attack(x, y, positions)
        assert (x_adv - x).abs().max() <= 0.1 + 1e-6
        survives &= routed(*system.split(x_adv)) == y
    assert numbers["against_system"] == pytest.approx(survives.double().mean().item())
    assert numbers["against_system"] < numbers["clean"]
    described = {name: (found["name"], found["steps"]) for name, found in numbers["attacks"].items()}
    assert described == {
        "adversarial": ("pgd", 20),
        "against_source": ("pgd", 20),
        "as clean": ("apgd", 5),
        "as adversarial": ("apgd", 5),
    }


def test_a_source_of_other_classes_is_refused(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of("rfd", images=4, source="three")
    monkeypatch.setattr(
        type(context), "source", lambda self: nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    )
    with pytest.raises(UserError, match=r"--source three: 3 classes, expected the 10 of .*rfd"):
        PART.make(context)
