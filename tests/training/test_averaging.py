"""Averages of the weights, against torch's and against means taken in float64."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tiny_runs import assert_equal, tiny
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from robustfast.training.averaging import Average

STEPS = 40


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def move(model: nn.Module, step: int) -> None:
    """Something like a training step: every weight and statistic changes, the counter counts."""
    generator = torch.Generator().manual_seed(step)
    model.train()
    model(torch.rand(4, 1, 8, 8, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def history(model: nn.Module, average: Average) -> list[dict[str, Tensor]]:
    states = []
    for step in range(STEPS):
        move(model, step)
        average.update(step)
        states.append({name: value.double() for name, value in model.state_dict().items()})
    return states


def test_exponential_average_is_torchs_once_its_decay_is_reached() -> None:
    model = network()
    # (1 + 9) / (10 + 9) is above 0.5 from the tenth step on.
    average = Average(model, tiny(average="ema", ema_decay=0.5), STEPS)
    for step in range(10):
        move(model, step)
        average.update(step)
    theirs = AveragedModel(average.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    theirs.n_averaged.fill_(1)
    for step in range(10, STEPS):
        move(model, step)
        average.update(step)
        theirs.update_parameters(model)
    for mine, other in zip(average.model.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_exponential_average_starts_with_a_short_memory() -> None:
    model = network()
    average = Average(model, tiny(average="ema", ema_decay=0.999), STEPS)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step, new in enumerate(history(model, average)):
        decay = (1 + step) / (10 + step)
        expected = {name: decay * expected[name] + (1 - decay) * new[name] for name in new}
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name


def test_plain_average_is_the_mean_over_the_steps_from_its_start() -> None:
    model = network()
    average = Average(model, tiny(average="swa", swa_start=0.75), STEPS)
    states = history(model, average)
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([state[name] for state in states[30:]]).mean(0)
            assert torch.allclose(value.double(), mean, rtol=1e-5, atol=1e-6), name


def test_plain_average_is_torchs() -> None:
    model = network()
    average = Average(model, tiny(average="swa", swa_start=0.0), STEPS)
    theirs = AveragedModel(model)
    for step in range(STEPS):
        move(model, step)
        average.update(step)
        theirs.update_parameters(model)
    for mine, other in zip(average.model.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_before_its_start_the_plain_average_is_the_weights() -> None:
    model = network()
    average = Average(model, tiny(average="swa", swa_start=0.75), STEPS)
    for step in range(30):
        move(model, step)
        average.update(step)
        assert_equal(dict(average.state_dict()), dict(model.state_dict()), f"step {step}")


def test_statistics_are_averaged_and_counters_are_not() -> None:
    model = network()
    average = Average(model, tiny(average="ema"), STEPS)
    states = history(model, average)
    norm = average.model[1]
    assert int(norm.num_batches_tracked) == STEPS
    seen = torch.stack([state["1.running_var"] for state in states])
    assert (norm.running_var > seen.amin(0)).all()
    assert (norm.running_var < seen.amax(0)).all()


def test_the_trained_model_is_left_alone() -> None:
    model, alone = network(), network()
    average = Average(model, tiny(average="ema"), STEPS)
    for step in range(5):
        move(model, step)
        move(alone, step)
        average.update(step)
    assert_equal(dict(model.state_dict()), dict(alone.state_dict()), "model")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_layout_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    average = Average(model, tiny(average="ema"), STEPS)
    average.update(0)
    assert average.model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["ema", "swa"])
@pytest.mark.parametrize("stop", [7, 33])
def test_resumed_average_is_bit_equal(kind: str, stop: int) -> None:
    config = tiny(average=kind)
    model = network()
    average = Average(model, config, STEPS)
    for step in range(stop):
        move(model, step)
        average.update(step)
    kept = deepcopy((model.state_dict(), average.state_dict()))
    for step in range(stop, STEPS):
        move(model, step)
        average.update(step)

    resumed = network()
    with torch.no_grad():
        resumed[0].weight.zero_()
    again = Average(resumed, config, STEPS)
    resumed.load_state_dict(kept[0])
    again.load_state_dict(kept[1])
    for step in range(stop, STEPS):
        move(resumed, step)
        again.update(step)
    assert_equal(dict(again.state_dict()), dict(average.state_dict()), kind)


def test_none_is_no_average() -> None:
    with pytest.raises(ValueError, match='average is "none"'):
        Average(network(), tiny(), STEPS)
