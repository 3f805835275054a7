"""What is taken out of a batch comes back to its place."""

from __future__ import annotations

import pytest
import torch

from robustfast.attacks.compaction import remaining


@pytest.mark.parametrize("static", [False, True])
def test_rows_come_back_to_their_places(static: bool) -> None:
    done = torch.tensor([True, False, False, True, False, True, True, True])
    state = {"x": torch.arange(48.0).reshape(8, 2, 3), "n": torch.arange(8)}
    before = {name: value.clone() for name, value in state.items()}
    left = remaining(done, static=static)
    assert left.count == 3
    assert left.rows.tolist() == ([1, 2, 4, 4] if static else [1, 2, 4])
    part = left.take(state)
    assert torch.equal(part["x"][:3], before["x"][[1, 2, 4]])
    part["x"] += 100
    part["n"][:3] = torch.tensor([-1, -2, -3])
    left.put(state, part)
    assert torch.equal(state["x"][done], before["x"][done])
    assert torch.equal(state["x"][[1, 2, 4]], before["x"][[1, 2, 4]] + 100)
    assert state["n"].tolist() == [0, -1, -2, 3, -3, 5, 6, 7]


@pytest.mark.parametrize("left", range(1, 18))
def test_a_graph_meets_few_sizes(left: int) -> None:
    done = torch.arange(17) >= left
    rows = remaining(done, static=True).rows
    assert len(rows) in (17, 9, 5, 3, 2)
    assert len(rows) >= left
    assert rows.max() == left - 1


def test_nothing_left() -> None:
    assert remaining(torch.ones(4, dtype=torch.bool), static=True).count == 0
    assert remaining(torch.ones(4, dtype=torch.bool), static=False).count == 0


def test_channels_last_images_stay_so() -> None:
    images = torch.rand(4, 3, 5, 5).to(memory_format=torch.channels_last)
    part = remaining(torch.tensor([False, True, False, False]), static=False).take({"x": images})["x"]
    assert part.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(part, images[[0, 2, 3]])
