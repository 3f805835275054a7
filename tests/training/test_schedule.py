"""Learning rates, against torch's own schedulers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustfast.training.presets import PRESETS
from robustfast.training.schedule import SCHEDULES, learning_rate


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


@pytest.mark.parametrize(("epochs", "steps"), [(40, 12), (1, 7)])
def test_cosine_is_torchs(epochs: int, steps: int) -> None:
    config = replace(PRESETS["digits-aatpp"], schedule="cosine", epochs=epochs, lr=0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    for step in range(epochs * steps):
        assert learning_rate(config, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-7)
        optimizer.step()
        theirs.step()


def test_constant() -> None:
    config = replace(PRESETS["digits-aatpp"], schedule="constant", lr=0.05)
    assert {learning_rate(config, step, 12) for step in range(480)} == {0.05}


def test_warmup_is_torchs_linear_one() -> None:
    config = replace(PRESETS["digits-aatpp"], schedule="constant", lr=0.05, warmup=1.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 18, total_iters=17)
    for step in range(30):
        assert learning_rate(config, step, 12) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_warmup_grows_into_its_schedule() -> None:
    config = replace(PRESETS["digits-aatpp"], schedule="cosine", lr=1.0, warmup=0.25, epochs=2)
    plain = replace(config, warmup=0.0)
    shares = [learning_rate(config, step, 10) / learning_rate(plain, step, 10) for step in range(20)]
    # 2.5 steps: two of them on the way, the third is there.
    assert shares == pytest.approx([0.4, 0.8] + [1.0] * 18)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_rate_is_a_function_of_the_step_and_moves_something(schedule: str) -> None:
    warm = 0.0 if schedule == "onecycle" else 0.3
    config = replace(PRESETS["digits-aatpp"], schedule=schedule, epochs=3, warmup=warm, milestones=(1, 2))
    rates = [learning_rate(config, step, 5) for step in range(15)]
    assert [learning_rate(config, step, 5) for step in reversed(range(15))] == rates[::-1]
    assert all(0 < rate <= config.lr for rate in rates)
