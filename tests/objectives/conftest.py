import sys
from pathlib import Path

import pytest
import torch

from robustfast.models import ThreeWay

sys.path.insert(0, str(Path(__file__).parent))  # for pass_counter.py and hand_made.py, beside this file


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def digits_model():
    """A real three-way model with batch norms, in train mode."""
    return ThreeWay("digits_cnn", num_classes=10, in_channels=1)


@pytest.fixture
def batch():
    """x, y, index of six digit-sized images."""
    return torch.rand(6, 1, 8, 8), torch.randint(10, (6,)), torch.tensor([4, 0, 7, 2, 9, 11])
