"""AFD end to end on real digits: what a run leaves behind, and that stopping it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_end, few_digits, metrics, tiny

from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.engine import Engine
from robustfast.training.fit import fit, resume
from robustfast.training.run_folder import load_run
from robustfast.training.run_objective import run_objective


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


class StopError(Exception):
    """Stands for the process ending."""


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A checkpoint in the midst of the second epoch, where momentum and singular vectors have long moved.
    config = tiny("digits-afd-wgan", checkpoint_steps=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(replace(config, out=whole))
    step, made = Engine.step, 0

    def limited(self: Engine, *args: Any, **keywords: Any) -> Any:
        nonlocal made
        if made == 5:
            raise StopError
        made += 1
        return step(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", limited)
        with pytest.raises(StopError):
            fit(replace(config, out=broken))
    resume(broken)
    assert_same_end(whole, broken)

    run = load_run(whole)
    assert run.config.network == "unit_norm"
    found = run_objective(run)
    assert not found.discriminator.training
    stored = checkpoint.load(whole / "checkpoints" / "last.pt")["engine"]["networks"]["discriminator"]
    for name, value in found.discriminator.state_dict().items():
        assert torch.equal(value, stored[name]), name
    lines = metrics(whole)
    assert set(lines[-1]["terms"]) == {"classifier", "discriminator", "encoder"}
    assert list(lines[-1]["adversarial"]) == ["r"]
