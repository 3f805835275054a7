from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from robustfast.attacks import PGD, AttackConfig
from robustfast.errors import UserError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eps": 8}, r"eps is 8, expected pixel units of \[0, 1\]; write 8/255"),
        ({"eps": -0.1}, "eps is -0.1, expected a radius >= 0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": float("inf"), "norm": "l2"}, "eps is inf"),
        ({"step_size": -1.0}, "step-size is -1.0, expected a length >= 0"),
        ({"step_size": float("nan")}, "step-size is nan"),
        ({"steps": 0}, "steps is 0, expected a whole number from 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"norm": "l3"}, "norm is 'l3', expected one of linf, l2, l1"),
        ({"step": "signed"}, "step is 'signed'"),
        ({"step": "topq"}, "step 'topq' is the l1 rule"),
        ({"ramp": 1.5}, r"ramp is 1.5, expected a fraction of training in \[0, 1\]"),
        ({"random_start": "sphere"}, "random-start is 'sphere', expected 'ball', 'pixel' or 'none'"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^--attack.{message}") as caught:
        AttackConfig(**setting)
    assert "\n" not in str(caught.value)


def test_eps_above_one_is_fine_where_it_is_no_pixel_value() -> None:
    assert AttackConfig(eps=12.0, norm="l1").eps == 12.0


def test_the_ramp_grows_linearly_and_then_stays() -> None:
    config = AttackConfig(eps=0.1, step_size=0.02, ramp=0.4)
    assert config.at(0.0) == (0.0, 0.0)
    assert config.at(0.2) == pytest.approx((0.05, 0.01))
    assert config.at(0.4) == config.at(1.0) == (0.1, 0.02)
    assert AttackConfig(eps=0.1).at(0.0)[0] == 0.1


def test_the_ramp_starts_from_the_clean_image() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x, y = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
    config = AttackConfig(ramp=0.5)
    eps, step_size = config.at(0.0)
    assert torch.equal(PGD(net, **config.keywords())(x, y, eps=eps, step_size=step_size), x)


@pytest.mark.parametrize(("start", "law"), [("ball", "ball"), ("pixel", "pixel"), ("none", None)])
def test_an_attack_is_built_from_its_keywords(start: str, law: str | None) -> None:
    config = AttackConfig(eps=0.3, step_size=0.01, steps=5, norm="l2", step="sign", random_start=start)
    attack = PGD(nn.Identity(), **config.keywords())
    for field in ("eps", "step_size", "steps", "norm", "step"):
        assert getattr(attack, field) == getattr(config, field)
    assert attack.law == law


def test_a_configuration_cannot_be_changed_behind_its_checks() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AttackConfig().eps = 8
