from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustfast.attacks.range_check import Extremes

X = torch.tensor([[0.0, 0.5], [0.25, 1.0]])
Y = torch.tensor([0, 2])


def check(
    x: Tensor = X, y: Tensor = Y, loss: object = "ce", bounds: tuple[float, float] = (0.0, 1.0)
) -> None:
    Extremes(x, y, loss).check(bounds, 3)


def test_what_is_in_range_passes() -> None:
    check()
    check(x=X * 2 - 1, bounds=(-1.0, 1.0))
    check(y=torch.tensor([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]]), loss="kl")
    check(y=torch.tensor([7, -7]), loss=lambda logits, target: logits.sum(1))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            (X - 0.45) / 0.25,
            r"x has values from -1.8 to 2.2, expected pixels in \[0, 1\]; if x is normalised.*inside the model",
        ),
        (X * 255, "x has values from 0 to 255.*divide bytes by 255"),
        (X + 1e-6, "x has values from 1e-06 to 1"),
        (torch.where(X == 0.5, torch.nan, X), "x has values from nan to nan.*look for what made the nan"),
        (torch.where(X == 0.5, torch.inf, X), "x has values from 0 to inf"),
    ],
)
def test_pixels_out_of_range(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(x=x)


def test_channels_last_is_read_as_it_lies() -> None:
    x = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    x[1, 2, 3, 4] = -1
    with pytest.raises(ValueError, match="x has values from -1 to"):
        check(x=x)


@pytest.mark.parametrize("y", [[0, 3], [-1, 2], [-100, 0]])
def test_labels_out_of_range(y: list[int]) -> None:
    message = f"y has labels from {min(y)} to {max(y)}, expected 0 to 2: the model returned 3 logits"
    with pytest.raises(ValueError, match=message):
        check(y=torch.tensor(y))


@pytest.mark.parametrize(
    "y", [[[0.5, 0.6, 0.5]], [[-0.5, 0.5, 1.0]], [[float("nan"), 0.5, 0.5]], [[2.0, -1.0, -3.0]]]
)
def test_targets_that_are_no_probabilities(y: list[list[float]]) -> None:
    with pytest.raises(
        ValueError, match="loss 'kl' expects probabilities; take logits through softmax first"
    ):
        check(y=torch.tensor(y), loss="kl")
