"""Puts given_features.py, which these tests and a process of theirs share, where imports find it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
