"""Attacks as the command line spells them: what each spelling builds, and what a wrong one is told."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from robustfast import attacks
from robustfast.attacks import ATTACKS
from robustfast.errors import UserError
from robustfast.evaluation.attack_names import NORMS, known_names, parse, parse_all, settings_of
from robustfast.evaluation.attacks import ATTACKS as PRESETS
from robustfast.models import ThreeWay


@pytest.mark.parametrize(
    ("name", "attack", "norm", "settings"),
    [
        ("pgd", "pgd", "linf", {}),
        ("pgd20", "pgd", "linf", {"steps": 20}),
        ("pgd20-l2", "pgd", "l2", {"steps": 20, "norm": "l2"}),
        ("pgd-l1", "pgd", "l1", {"norm": "l1"}),
        ("pgd-foolbox40-l2", "pgd-foolbox", "l2", {"steps": 40, "norm": "l2"}),
        ("pgd40-foolbox-l2", "pgd-foolbox", "l2", {"steps": 40, "norm": "l2"}),
        ("apgd50-ce", "apgd-ce", "linf", {"steps": 50}),
        ("apgd-ce-l1", "apgd-ce", "l1", {"norm": "l1"}),
        ("cw-l2", "cw-l2", "l2", {}),
        ("cw100-l2", "cw-l2", "l2", {"steps": 100}),
        ("deepfool-l2", "deepfool", "l2", {"norm": "l2"}),
        ("square500-l2", "square", "l2", {"queries": 500, "norm": "l2"}),
        ("fgsm-l2", "fgsm", "l2", {"norm": "l2"}),
        ("stadv10", "stadv", "stadv", {"steps": 10}),
        ("fab-t-l1", "fab-t", "l1", {"norm": "l1"}),
    ],
)
def test_a_name_builds_what_it_says(name, attack, norm, settings):
    if attack not in ATTACKS:
        pytest.skip(f"there is no {attack} yet")
    named = parse(name)
    assert (named.name, named.attack, named.norm) == (name, attack, norm)
    assert {key: value for key, value in named.settings.items() if key in settings} == settings
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    built = named.build(model, 0.25, seed=3)
    assert type(built) is ATTACKS[attack].attack
    assert (built.eps, built.seed) == (0.25, 3)
    for key, value in settings.items():
        assert getattr(built, key) == value
    if norm in NORMS:
        assert built.norm == norm


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_of_the_library_can_be_named_and_described(name):
    named = parse(name)
    assert named.attack == name
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    # The one attack that has no model of its own to look at.
    more = {"source": model} if name == "transfer" else {}
    written = named.as_json(named.build(model, 0.1, seed=7, **more))
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert (written["name"], written["eps"], written["seed"]) == (name, 0.1, 7)
    assert set(settings_of(ATTACKS[name].attack)) <= set(written)
    assert set(ATTACKS[name].settings) <= set(written)
    assert named.norm == name or named.norm in ATTACKS[name].attack.norms


def test_what_a_class_fixes_is_described_as_fixed():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    written = {
        name: parse(name).as_json(parse(name).build(model, 0.1)) for name in ("fgsm", "bim", "pgd-y", "pgd20")
    }
    assert (written["fgsm"]["steps"], written["fgsm"]["random_start"]) == (1, False)
    assert (written["bim"]["random_start"], written["bim"]["relative_step"]) == (False, 0.25)
    assert (written["pgd-y"]["random_start"], written["pgd-y"]["step"]) == ("pixel", "sign")
    assert (written["pgd20"]["random_start"], written["pgd20"]["steps"]) == ("ball", 20)


def test_no_step_is_described_that_was_not_taken():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

    def steps(name, **settings):
        written = parse(name).as_json(parse(name).build(model, 0.1, **settings))
        return written["step_size"], written["relative_step"]

    assert steps("pgd20") == steps("pgd-l2") == steps("bim") == steps("cw-pgd") == (None, 0.25)
    assert steps("fgsm") == (None, 1.0)
    assert steps("pgd20", step_size=0.01) == (0.01, None)
    assert steps("pgd20", relative_step=0.1) == (None, 0.1)
    # An AAT preset fixes a length.
    assert steps("digits-linf") == (0.0125, None)


def test_one_name_means_one_thing():
    assert not set(ATTACKS) & set(PRESETS)
    for name in PRESETS:
        # No spelling of the library's attacks is taken by a preset.
        assert parse(name).attack == "pgd"
    assert len(set(known_names())) == len(known_names())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_finds_the_images_it_finds_in_its_own_protocol(name):
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).eval()
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    preset = PRESETS[name]
    own = preset.build(model, "r")
    named = parse(name).build(model.way("r"), preset.strength.eps, seed=own._seeds["r"])
    assert torch.equal(named(x, y), own(x, y)["r"])


def test_names_of_attacks_that_come_later_are_read_from_the_table(monkeypatch):
    monkeypatch.setitem(attacks.ATTACKS, "new-k3-thing", ATTACKS["pgd"])
    assert parse("new-k3-thing5-l2").settings == {"steps": 5, "norm": "l2"}
    assert parse("new-k3-thing").settings == {"norm": "linf"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pdg", "unknown attack 'pdg'; did you mean 'pgd'?"),
        ("pgd20-l3", "unknown attack 'pgd20-l3'; did you mean 'pgd-l2'?"),
        ("20", "unknown attack '20'"),
        ("", "unknown attack ''"),
        ("cw-l2-linf", "cw-l2 knows l2, not linf"),
        ("stadv-l2", "stadv knows no norm, only a bound of its own, not l2"),
        ("fgsm3", "fgsm has no number of steps; write fgsm"),
        ("pgd0", "expected at least 1 step"),
        ("pgd-20", "unknown attack"),
    ],
)
def test_a_wrong_name_is_one_line(name, words):
    with pytest.raises(UserError) as mistake:
        parse(name)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_each_name_once():
    with pytest.raises(UserError, match="expected each name once"):
        parse_all(["pgd", "fgsm", "pgd"])
    assert [named.name for named in parse_all(["pgd", "fgsm"])] == ["pgd", "fgsm"]


def test_a_setting_that_an_attack_refuses_is_one_line():
    with pytest.raises(UserError, match="attack pgd20: eps is 8"):
        parse("pgd20").build(nn.Flatten(), 8.0)
