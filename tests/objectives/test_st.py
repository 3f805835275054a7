import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images

from robustfast.attacks import AttackConfig
from robustfast.objectives import ST


def test_loss_by_hand():
    model = hand_made_model(robust=7.0, non_robust=2.0)
    x = images((0.1, 0.9), (0.5, 0.3))
    (phase,) = ST(model, ST.Config(), AttackConfig(), seed=0).phases(x, torch.tensor([1, 1]), torch.arange(2))
    expected = (cross_entropy(2.0, (0.1, 0.9), 1) + cross_entropy(2.0, (0.5, 0.3), 1)) / 2
    assert phase.loss.item() == pytest.approx(expected, rel=1e-14)
    assert phase.terms["clean"].item() == phase.loss.item()
