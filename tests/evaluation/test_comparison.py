"""Which of our numbers stands beside which printed one."""

import pytest

from robustfast.evaluation.document import records
from robustfast.evaluation.papers.aat.comparison import combine_one_way, compare
from robustfast.evaluation.papers.aat.numbers import TABLES

CIFAR = ("cifar-linf", "cifar-l2-sign")


@pytest.fixture
def runs(document):
    def run(ways, natural, *attacked):
        return document(ways, natural, dict(zip(CIFAR, attacked, strict=True)))

    return {
        "st": run("n", {"n": 0.9375}, (None, 0.0), (None, 0.25)),
        "at": run("r", {"r": 0.875}, (0.375, None), (0.75, None)),
        "aat": run("srn", {"s": 0.9375, "r": 0.875, "n": 0.90625}, (0.5, 0.0), (0.75, 0.25)),
    }


def cells(comparison, method):
    return {
        column.key: cell for column, cell in zip(comparison.columns, comparison.rows[method], strict=True)
    }


def test_self_attack_table(runs):
    comparison = compare(TABLES["aat-table2"], runs)
    row = cells(comparison, "aat")
    assert list(row) == [
        "natural.s",
        "natural.r",
        "natural.n",
        "cifar-linf.adversarial.r",
        "cifar-linf.adversarial.n",
        "cifar-linf.adversarial.dia",
        "cifar-l2-sign.adversarial.r",
        "cifar-l2-sign.adversarial.n",
        "cifar-l2-sign.adversarial.dia",
    ]
    assert row["natural.s"].ours == 0.9375
    assert row["natural.s"].paper == pytest.approx(0.948)
    assert row["cifar-l2-sign.adversarial.dia"].ours == 0.5
    assert row["cifar-l2-sign.adversarial.dia"].difference == pytest.approx(0.5 - 0.578)


def test_row_that_was_not_run_keeps_the_papers_numbers(runs):
    row = cells(compare(TABLES["aat-table2"], runs), "aatpp")
    assert all(cell.ours is None and cell.difference is None for cell in row.values())
    assert row["cifar-linf.adversarial.r"].paper == pytest.approx(0.335)


def test_standard_way_table_takes_one_way_models_through_their_own_way(runs):
    comparison = compare(TABLES["aat-table7"], runs)
    assert cells(comparison, "st")["cifar-l2-sign.standard_way.n"].ours == 0.25
    assert cells(comparison, "st")["cifar-l2-sign.standard_way.s"].ours is None
    assert cells(comparison, "at")["cifar-linf.standard_way.r"].ours == 0.375
    assert cells(comparison, "aat")["cifar-linf.standard_way.r"].ours == 0.25
    assert cells(comparison, "aat")["cifar-linf.standard_way.s"].ours == 0.0625


def test_detection_table_shows_mixture_and_adversarial_half(runs):
    row = cells(compare(TABLES["aat-table4b"], runs), "aat")
    assert [cell.ours for cell in row.values()] == [0.8125, 0.5, 0.625, 0.75, 0.0625, 0.375]
    assert [cell.paper for cell in row.values()] == pytest.approx([0.648, 0.618, 0.655] * 2)


def test_combined_row_has_the_gap_between_two_models(runs):
    both = combine_one_way(runs["st"], runs["at"])
    assert both["natural"] == {"s": None, "r": 0.875, "n": 0.9375}
    assert records(both)["cifar-linf"]["adversarial"] == {"r": 0.375, "n": 0.0, "dia": 0.375}
    row = cells(compare(TABLES["aat-table2"], {"st+at": both}), "st+at")
    assert row["cifar-l2-sign.adversarial.dia"].ours == 0.5
    assert row["cifar-l2-sign.adversarial.dia"].paper == pytest.approx(0.464)


def test_missing_attack_is_an_error(document):
    run = document("srn", {"s": 1.0, "r": 1.0, "n": 1.0}, {"cifar-linf": (0.5, 0.0)})
    with pytest.raises(KeyError, match="cifar-l2-sign"):
        compare(TABLES["aat-table2"], {"aat": run})


def test_json_holds_both_and_their_difference(runs):
    values = compare(TABLES["aat-table2"], runs).as_json()
    assert values["rows"]["at"]["natural.r"] == {
        "ours": 0.875,
        "paper": 0.89,
        "difference": pytest.approx(-0.015),
    }
    assert values["rows"]["at"]["natural.s"] == {"ours": None, "paper": None, "difference": None}
