"""Learning rates, against torch's own schedulers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustfast.training.presets import PRESETS
from robustfast.training.schedule import learning_rate


@pytest.mark.parametrize(("epochs", "steps"), [(40, 12), (3, 5), (1, 7)])
def test_onecycle_is_torchs(epochs: int, steps: int) -> None:
    config = replace(PRESETS["digits-aatpp"], schedule="onecycle", epochs=epochs, lr=0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.05, total_steps=epochs * steps, cycle_momentum=False
    )
    for step in range(epochs * steps):
        assert learning_rate(config, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step + 1 < epochs * steps:
            theirs.step()


def test_multistep_is_torchs_stepped_after_each_epoch() -> None:
    config = PRESETS["cifar10-wrn34-aatpp"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(config.milestones), gamma=0.1)
    for epoch in range(config.epochs):
        for step in (0, 195):
            ours = learning_rate(config, epoch * 196 + step, 196)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()
    assert learning_rate(config, 105 * 196 - 1, 196) == pytest.approx(1e-4)
