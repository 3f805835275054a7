"""Whether a module was ever trained, as its batch norms tell."""

import torch
from torch import nn

from robustfast.models.untrained import untrained


def test_a_pass_in_train_mode_trains_and_one_in_eval_mode_does_not() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert untrained(net)
    net.eval()(torch.rand(2, 1, 5, 5))
    assert untrained(net)
    net.train()(torch.rand(2, 1, 5, 5))
    assert not untrained(net)


def test_without_batch_norms_it_cannot_be_told() -> None:
    assert not untrained(nn.Linear(2, 2))
