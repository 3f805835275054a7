"""Attacks by name: the paper's table 4a, and flags that change one of them."""

import dataclasses

import pytest

from robustfast.data import DATASETS
from robustfast.errors import UserError
from robustfast.evaluation.attacks import ATTACKS, DATASET_ATTACKS, attacks_for
from robustfast.models import ThreeWay


@pytest.mark.parametrize(
    ("name", "norm", "eps", "step_size", "steps", "step", "random_start"),
    [
        ("cifar-linf", "linf", 8 / 255, 2 / 255, 20, "auto", "ball"),
        ("cifar-l2-sign", "l2", 0.3, 0.1, 20, "sign", "pixel"),
        ("cifar-l2", "l2", 0.3, 0.1, 20, "grad", "ball"),
        ("mnist-linf", "linf", 0.3, 0.01, 10, "auto", "ball"),
        ("mnist-l2", "l2", 0.3, 0.01, 10, "grad", "ball"),
        ("digits-linf", "linf", 0.1, 0.0125, 20, "auto", "ball"),
    ],
)
def test_presets(name, norm, eps, step_size, steps, step, random_start):
    written = ATTACKS[name].as_json()
    assert written == {
        "name": name,
        "norm": norm,
        "eps": eps,
        "step_size": step_size,
        "steps": steps,
        "step": step,
        "random_start": random_start,
        "restarts": 1,
        "loss": "ce",
        "targeted": False,
        "bounds": [0.0, 1.0],
        "batch_norm": "eval",
        "seed": 0,
    }


def test_every_data_set_has_attacks_and_no_other_has():
    assert set(DATASET_ATTACKS) == set(DATASETS)
    assert {name for names in DATASET_ATTACKS.values() for name in names} <= set(ATTACKS)


def test_built_attack_has_the_presets_settings():
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    attack = attacks_for("mnist", ["cifar-l2-sign"])[0].build(model, "rn")
    assert attack.ways == "rn"
    for way in "rn":
        built = attack._separate[way]
        assert (built.norm, built.eps, built.step_size, built.steps) == ("l2", 0.3, 0.1, 20)
        assert (built.step, built.law, built.restarts, built.loss, built.batch_norm) == (
            "sign",
            "pixel",
            1,
            "ce",
            "eval",
        )


def test_attack_without_random_start_can_be_built():
    (attack,) = attacks_for("digits", random_start="none")
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    assert attack.build(model, "r")._separate["r"].law is None


def test_names_and_the_data_sets_own():
    assert [attack.name for attack in attacks_for("mnist")] == ["mnist-linf", "mnist-l2"]
    assert [attack.name for attack in attacks_for("mnist", ["digits-linf", "cifar-l2"])] == [
        "digits-linf",
        "cifar-l2",
    ]


def test_changed_fields_make_one_custom_attack():
    (attack,) = attacks_for("cifar10", ["cifar-l2"], eps=0.5, steps=None, restarts=3)
    preset = ATTACKS["cifar-l2"]
    assert attack.name == "custom"
    assert attack.strength == dataclasses.replace(preset.strength, eps=0.5)
    assert attack.restarts == 3
    assert ATTACKS["cifar-l2"].strength.eps == 0.3


@pytest.mark.parametrize(
    ("names", "changes", "words"),
    [
        (["cifar-l3"], {}, "unknown attack 'cifar-l3'; did you mean 'cifar-l2'?"),
        (["cifar-l2", "cifar-l2"], {}, "expected each name once"),
        (["cifar-l2", "cifar-linf"], {"eps": 0.1}, "eps: changes one attack, but 2 are named"),
        (["cifar-linf"], {"eps": 8.0}, "8/255"),
        ([], {"steps": 0}, "steps"),
        ([], {"restarts": 0}, "--attack.restarts is 0"),
        ([], {"restarts": 2, "random_start": "none"}, "every start would be the image itself"),
    ],
)
def test_mistakes_are_one_line(names, changes, words):
    with pytest.raises(UserError) as mistake:
        attacks_for("cifar10", names, **changes)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_unknown_data_set():
    with pytest.raises(UserError, match="unknown data set 'cifar11'"):
        attacks_for("cifar11")
