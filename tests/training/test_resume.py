"""Runs that are stopped inside an epoch and go on: the same bits at the end, with whatever serves and moves them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stop_and_resume import KINDS
from warm import Warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks, and this system cannot")


@pytest.fixture(scope="module")
def outcomes(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What the harness found for a kind of run; it trains all that can be trained here at once."""
    kinds = [kind for kind in KINDS if kind != "dali" or find_spec("nvidia.dali") is not None]
    folder = tmp_path_factory.mktemp("runs")
    done = warm.run(str(Path(__file__).with_name("stop_and_resume.py")), str(folder), *kinds, timeout=900)
    found = json.loads(done.stdout) if done.returncode == 0 else {}

    def outcome(kind: str) -> dict[str, Any]:
        if kind not in kinds:
            pytest.skip("needs nvidia.dali")
        assert done.returncode == 0, done.stderr
        return found[kind]

    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_uninterrupted(kind: str, outcomes: Callable[[str], dict[str, Any]]) -> None:
    """The harness compares the runs bit by bit; here, that each was stopped where it is meant to be stopped."""
    outcome = outcomes(kind)
    # Checkpoints after every second step, killed in the fifth: the fourth is the newest.
    assert outcome["killed"] == [1, 1]
    assert outcome["asked"] == [1, 2]
    assert outcome["code"] == 143
    assert outcome["said"].startswith(
        "stopped by SIGTERM, after 1 epoch and 2 steps; continue with: python -m "
    )
    assert outcome["said"].count("\n") == 1
