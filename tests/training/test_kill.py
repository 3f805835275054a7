"""SIGKILL at any moment: the resumed run ends with the same bits as one that was never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from warm import Warm


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks, and this system cannot")
def test_killed_and_resumed_is_uninterrupted(warm: Warm, tmp_path: Path) -> None:
    harness = Path(__file__).with_name("kill_and_resume.py")
    done = warm.run(str(harness), str(tmp_path), timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 20
    # config.json: 3. An epoch: last.pt inside it and at its end 2 x 4, less a rename where none is before it; the
    # metrics line 1; best.pt 3 where it improves.
    assert 3 + 2 * 9 - 1 + 3 <= result["operations"] <= 3 + 2 * 12 - 1
