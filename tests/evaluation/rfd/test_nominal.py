"""The nominal table and the black-box column: direct calls of the same attacks."""

from __future__ import annotations

import pytest
import torch

from robustfast.attacks import PGD, AutoAttack, CarliniWagner, MarginPGD
from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.rfd import black_box, nominal
from robustfast.evaluation.rfd.threat import RADII


def test_the_attacks_are_the_papers() -> None:
    built = {
        column: parse(name).build(lambda x: x, 8 / 255 if parse(name).norm == "linf" else 1.0)
        for column, name in nominal.ATTACKS.items()
    }
    assert list(built) == ["fgsm", "pgd", "cw", "cw_l2", "aa", "spsa"]
    assert (built["pgd"].steps, built["pgd"].relative_step * 8 / 255) == (20, 2 / 255)
    assert isinstance(built["cw"], MarginPGD)
    assert built["cw"].steps == 30
    assert isinstance(built["cw_l2"], CarliniWagner)
    assert built["cw_l2"].steps == 100
    assert isinstance(built["aa"], AutoAttack)
    assert (built["spsa"].steps, built["spsa"].samples, built["spsa"].delta) == (100, 128, 0.01)
    assert RADII["cifar10"] == {"linf": 8 / 255, "l2": 1.0, "l1": 12.0}


@pytest.mark.parametrize("method", ["rfd", "um"])
def test_the_numbers_are_those_of_direct_calls(
    context_of, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    cheap = {"cw_l2": "cw3-l2", "aa": "apgd-ce5", "spsa": "spsa2"}
    monkeypatch.setattr(nominal, "ATTACKS", {**nominal.ATTACKS, **cheap})
    monkeypatch.setattr(nominal, "SPSA_IMAGES", 8)
    context = context_of(method, images=40)
    result = nominal.PART.make(context)
    numbers = result.numbers
    model = context.run.model.way("r")
    ((x, y, positions),) = context.batches()
    right = model(x).argmax(1) == y
    assert numbers["clean"] == right.double().mean().item()
    attacks = {
        "fgsm": PGD(model, 0.1, step_size=0.1, steps=1, random_start=False),
        "pgd": PGD(model, 0.1, step_size=0.025, steps=20),
        "cw": MarginPGD(model, 0.1, step_size=0.025, steps=30),
    }
    for column, attack in attacks.items():
        left = right & (model(attack(x, y, positions)).argmax(1) == y)
        assert numbers[column] == left.double().mean().item()
        assert numbers["attacks"][column]["images"] == 40
    assert numbers["pgd"] < numbers["clean"]
    assert numbers["attacks"]["spsa"]["images"] == 8
    assert numbers["attacks"]["spsa"]["early_stop"] is True
    assert numbers["attacks"]["cw_l2"]["eps"] == 0.5
    assert result.tables[0].caption == "SPSA on 8 of them"
    assert not (context.folder / "rfd-nominal.partial").exists()


def test_black_box_images_are_made_on_the_source(context_of, runs) -> None:
    context = context_of("rfd", images=40, source=str(runs("um")))
    numbers = black_box.PART.make(context).numbers
    ((x, y, positions),) = context.batches()
    model, source = context.run.model.way("r"), context.source()
    x_adv = PGD(source, 0.1, step_size=0.025, steps=20)(x, y, positions)
    with torch.no_grad():
        left = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
    assert numbers["pgd"] == left.double().mean().item()
    assert numbers["attacks"]["pgd"]["source"] == str(runs("um"))
