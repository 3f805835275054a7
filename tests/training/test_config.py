"""The configuration: checked when made, stored and read back without loss, compared field by field."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from robustfast.errors import UserError
from robustfast.training.config import differences, from_json, to_json
from robustfast.training.presets import PRESETS

CONFIG = PRESETS["digits-aatpp"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_stored_configuration_comes_back(name: str) -> None:
    config = replace(PRESETS[name], data_dir=Path("some/where"))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_out_is_not_stored() -> None:
    assert from_json(to_json(replace(CONFIG, out=Path("runs/a")))).out is None


def test_differences_name_the_flags() -> None:
    changed = replace(CONFIG, lr=0.3, attack=replace(CONFIG.attack, steps=7), batch_size=7)
    assert differences(changed, CONFIG) == [
        f"--attack.steps 7 (was {CONFIG.attack.steps})",
        f"--batch-size 7 (was {CONFIG.batch_size})",
        f"--lr 0.3 (was {CONFIG.lr})",
    ]


def test_where_it_runs_may_differ() -> None:
    moved = replace(CONFIG, device="cpu", data_dir=Path("/elsewhere"), checkpoint_steps=5, out=Path("x"))
    assert differences(moved, CONFIG) == []


def test_configuration_of_another_version() -> None:
    stored = to_json(CONFIG)
    with pytest.raises(UserError, match="unknown fields: shiny"):
        from_json(stored | {"shiny": 1})
    del stored["lr"]
    with pytest.raises(UserError, match="lacks the fields: lr"):
        from_json(stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 0}, r"--epochs 0: expected at least 1"),
        ({"batch_size": -3}, r"--batch-size -3: expected at least 1"),
        ({"lr": float("nan")}, r"--lr nan: expected a finite number"),
        ({"momentum": -0.1}, r"--momentum -0.1"),
        ({"weight_decay": float("inf")}, r"--weight-decay inf"),
        ({"milestones": (90, 75)}, r"--milestones 90,75: expected growing epochs"),
    ],
)
def test_fields_out_of_range(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **fields)
