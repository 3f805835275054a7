"""Memory of kernel density and LID on as many features as CIFAR-10 has under a wide ResNet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_below_one_gigabyte_on_50000_features_of_640() -> None:
    """Peak of the whole process: the features are 128 MB of it, torch, scikit-learn and matplotlib some 350."""
    program = Path(__file__).parent / "many_features.py"
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1e9
