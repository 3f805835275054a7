"""``--fold`` in a whole run: from the configuration to the attacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import few_digits, metrics, tiny

from robustfast.attacks import folding
from robustfast.attacks import gradient as gradients
from robustfast.attacks.folding import active_plans
from robustfast.errors import UserError
from robustfast.training import fit as fits
from robustfast.training.config import from_json, to_json
from robustfast.training.fit import fit


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "load", few_digits)


def test_a_run_folds_as_its_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[int] = []
    plain = gradients.InputGradient.__call__

    def watched(self: gradients.InputGradient, *args: object) -> object:
        plans.append(len(active_plans()))
        return plain(self, *args)

    monkeypatch.setattr(gradients.InputGradient, "__call__", watched)
    loss = {}
    for mode, expected in (("off", {0}), ("auto", {0}), ("on", {1, 2})):
        plans.clear()
        run = fit(tiny(epochs=1, out=tmp_path / mode, fold=mode))
        loss[mode] = metrics(run)[0]["loss"]
        assert set(plans) == expected
    assert loss["off"] == loss["auto"] == pytest.approx(loss["on"], rel=1e-4)
    with folding("on"):
        plans.clear()
        fit(tiny(epochs=1, out=tmp_path / "inside", fold="off"))
        assert set(plans) == {0}


def test_the_field_is_checked_and_stored() -> None:
    assert from_json(to_json(tiny(fold="on"))).fold == "on"
    with pytest.raises(UserError, match="--fold 'yes': expected one of auto, on, off"):
        tiny(fold="yes")
