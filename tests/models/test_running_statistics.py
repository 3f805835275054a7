"""Running statistics moved without a pass, against those that passes leave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robustfast.distributed import World
from robustfast.models.running_statistics import recorded
from robustfast.models.sync_batch_norm import SyncBatchNorm


def network() -> nn.Sequential:
    """Batch norms of several momenta, and those that are none of a pass's concern."""
    torch.manual_seed(0)
    frozen = nn.BatchNorm2d(4).eval()
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        frozen,
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, momentum=0.4),
        nn.Flatten(),
        SyncBatchNorm(nn.BatchNorm1d(48, momentum=0.25), World()),
    )


def batch(number: int, dtype: torch.dtype) -> torch.Tensor:
    draws = torch.Generator().manual_seed(number)
    return (torch.randn(8, 2, 8, 8, generator=draws, dtype=torch.float64) * (number + 1) + number).to(dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_replay_is_a_second_pass(dtype: torch.dtype, error: float) -> None:
    mine = network().to(dtype)
    theirs = copy.deepcopy(mine)
    first, second = batch(0, dtype), batch(1, dtype)
    with recorded(mine) as by_first:
        mine(first)
    with torch.no_grad(), recorded(mine) as by_second:
        mine(second)
    # Also after other passes, in any order and more than once.
    by_second.replay()
    by_first.replay()
    by_second.replay()
    for x in (first, second, second, first, second):
        theirs(x)
    moved = 0
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(mine.get_buffer(name), value, rtol=error, atol=error)
        moved += int(name.endswith("num_batches_tracked") and bool(value == 5))
    assert moved == 3


def test_a_pass_before_a_replay_can_still_be_differentiated() -> None:
    model = network()
    twin = copy.deepcopy(model)
    x = batch(0, torch.float32)
    with recorded(model) as update:
        y = model(x)
    update.replay()
    y.square().sum().backward()
    twin(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


def test_nothing_to_record_is_nothing_to_replay() -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with recorded(model) as update:
        model(batch(0, torch.float32))
    update.replay()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_plain_average_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    with pytest.raises(ValueError, match="momentum=None"), recorded(model):
        pass
