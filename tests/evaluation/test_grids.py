"""Radii and areas: against numbers worked out by hand, and those the AFD paper prints."""

from __future__ import annotations

import pytest

from robustfast.data import DATASETS
from robustfast.errors import UserError
from robustfast.evaluation.grids import GRIDS, STANDARD_EPS, area, checked_grid, grid, standard_eps


def test_area_by_hand():
    # Trapezoids of 0.1 x 0.7, 0.2 x 0.3 and 0.1 x 0.1 over 0.4.
    assert area([0, 0.1, 0.3, 0.4], [0.8, 0.6, 0.0, 0.2]) == pytest.approx((0.07 + 0.06 + 0.01) / 0.4)
    assert area([0, 2.0], [1.0, 1.0]) == 1.0
    assert area([0, 2.0], [0.9, 0.0]) == pytest.approx(0.45)
    assert area([0.0], [0.9]) is None


@pytest.mark.parametrize(
    ("eps", "accuracy", "printed"),
    [
        # A network trained on natural images falls to 0 at the first radius: AFD's AutoAttack areas of .12 and .28.
        ([0, 8 / 255, 16 / 255, 32 / 255], [0.9489, 0, 0, 0], 0.12),
        ([0, 0.2, 0.3, 0.35], [0.9884, 0, 0, 0], 0.28),
        # The grids that its tables print are too coarse for the areas it prints: these are the least they allow.
        ([0, 2, 5, 10], [0.9884, 0, 0, 0], 0.10),
        ([0, 2, 5, 10, 20], [0.9884, 0, 0, 0, 0], 0.05),
        ([0, 0.5, 1, 1.5, 2], [0.9489, 0, 0, 0, 0], 0.12),
        ([0, 1, 2, 5], [0.9489, 0, 0, 0], 0.09),
    ],
)
def test_areas_of_the_paper(eps, accuracy, printed):
    assert area(eps, accuracy) == pytest.approx(printed, abs=0.0051)


@pytest.mark.parametrize(
    ("eps", "accuracy"),
    [([0.1, 0.2], [1, 1]), ([0, 0.2, 0.2], [1, 1, 1]), ([0, 0.2], [1]), ([], []), ([0, 0.3, 0.2], [1, 1, 1])],
)
def test_area_of_what_is_no_curve(eps, accuracy):
    with pytest.raises(ValueError, match="rise from 0"):
        area(eps, accuracy)


def test_every_data_set_has_grids():
    assert set(GRIDS) == set(STANDARD_EPS) == set(DATASETS)
    for grids in GRIDS.values():
        for norm, eps in grids.items():
            assert checked_grid("--eps", eps, [norm]) == eps
    assert grid("cifar10", "linf")[-1] == 32 / 255
    assert standard_eps("cifar10", "l2") == 0.5


def test_a_grid_starts_at_0_and_rises():
    assert checked_grid("--eps", (0.3, 0.1), ["linf"]) == (0.0, 0.1, 0.3)
    assert checked_grid("--eps", (0.0, 0.1), ["linf"]) == (0.0, 0.1)
    assert checked_grid("--eps", (5.0,), ["l2", "l1"]) == (0.0, 5.0)
    assert checked_grid("--eps", (1.0,), ["linf"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "norms", "words"),
    [
        ((8.0,), ["l2", "linf"], "write 8/255"),
        ((-0.1,), ["linf"], "--eps -0.1: expected a finite radius"),
        ((float("nan"),), ["l2"], "expected a finite radius"),
        ((float("inf"),), ["l2"], "expected a finite radius"),
        ((0.1, 0.1), ["linf"], "each radius once"),
        ((), ["linf"], "names no radius"),
    ],
)
def test_wrong_radii_are_one_line(values, norms, words):
    with pytest.raises(UserError) as mistake:
        checked_grid("--eps", values, norms)
    assert words in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_a_norm_without_a_usual_eps():
    with pytest.raises(UserError, match="mnist has no usual eps for l1: give --eps"):
        standard_eps("mnist", "l1")
