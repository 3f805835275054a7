"""Puts tiny_runs.py, which these tests and the processes they kill share, where imports find it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
