"""Units in use and dimensions that are filled, on features of known rank."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from robustfast.errors import UserError
from robustfast.evaluation.afd.dimensions import DIMENSIONS, principal_components, used_units
from robustfast.evaluation.features import collect


def gaussian(variances: list[float], width: int = 20, count: int = 4000) -> torch.Tensor:
    """Features of exactly these variances along random directions, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count, len(variances), generator=generator, dtype=torch.float64)
    draws -= draws.mean(0)
    draws = torch.linalg.qr(draws).Q * (torch.tensor(variances, dtype=torch.float64) * count).sqrt()
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    return draws @ directions[:, : len(variances)].T + 7


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_as_many_as_the_rank(rank: int) -> None:
    assert principal_components(gaussian([1.0] * rank)) == rank
    assert principal_components(gaussian([1.0] * rank).float()) == rank


def test_smallest_number_with_the_share() -> None:
    assert principal_components(gaussian([98.0, 1.5, 0.5])) == 2
    assert principal_components(gaussian([99.5, 0.3, 0.2])) == 1
    # 99 % exactly is enough.
    assert principal_components(gaussian([98.0, 1.0, 1.0])) == 2
    assert principal_components(gaussian([60.0, 30.0, 10.0]), share=0.9) == 2
    assert principal_components(gaussian([60.0, 30.0, 10.0]), share=0.91) == 3


def test_the_mean_is_no_dimension() -> None:
    assert principal_components(torch.full((50, 4), 0.1)) == 0
    assert principal_components(torch.zeros(50, 4)) == 0
    # Few images: one dimension fewer than images.
    assert principal_components(torch.eye(5), share=1.0) == 4


def test_units_not_zero_on_some_image() -> None:
    values = torch.zeros(5, 4)
    assert used_units(values) == 0
    values[3, 1] = 1e-20
    values[:, 2] = -1
    assert used_units(values) == 2


def test_part_beside_another_run(untrained: Callable, context_of: Callable) -> None:
    run, other = untrained("mine"), untrained("theirs", seed=1, network="one_way")
    with torch.no_grad():
        # Two units that no image lights.
        run.model.encoder[2].bias[:2] = -100
    context = context_of(run, {"at": other}, images=60)
    result = DIMENSIONS.make(context)
    numbers = result.numbers
    values = collect(run.model.features, context.batches()).values
    torch.testing.assert_close(values.norm(dim=1), torch.ones(60))
    assert numbers["features"] == 12
    assert numbers["units"] == used_units(values) <= 10
    assert numbers["dimensions"] == principal_components(values)
    assert numbers["images"] == 60
    assert numbers["tap"] == "unit norm"
    beside = numbers["others"]["at"]
    assert beside["tap"] == "not normalised"
    assert beside["dimensions"] == principal_components(
        collect(other.model.features, context.batches()).values
    )
    (table,) = result.tables
    # This run last, as in the paper.
    assert list(table.columns[0].cells) == ["at", "mine"]


def test_runs_that_cannot_stand_beside_this_one(untrained: Callable, context_of: Callable) -> None:
    run = untrained("mine")
    with pytest.raises(UserError, match=r"mine is this run's own name; give another one as LABEL="):
        DIMENSIONS.make(context_of(run, {"mine": untrained("mine", seed=1)}))
    with pytest.raises(UserError, match="--against other: trained on mnist, this run on digits"):
        DIMENSIONS.make(context_of(run, {"other": untrained("other", dataset="mnist")}))
