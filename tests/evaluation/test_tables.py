"""What a user reads: percent with two decimals, "-" where there is no number, ours above the paper's."""

import pytest
from rich.console import Console

from robustfast.evaluation.papers.aat.comparison import compare
from robustfast.evaluation.papers.aat.numbers import TABLES
from robustfast.evaluation.tables import (
    accuracy_table,
    comparison_markdown,
    comparison_table,
    detection_table,
    percent,
)


def rows(table):
    """The cells of a rich table, as they are printed, row by row."""
    return list(zip(*(list(column.cells) for column in table.columns), strict=True))


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.97499, "97.50"), (1.0, "100.00"), (0.0, "0.00"), (None, "-")]
)
def test_percent(fraction, text):
    assert percent(fraction) == text


def test_percent_with_sign():
    assert percent(0.0123, signed=True) == "+1.23"
    assert percent(-0.0123, signed=True) == "-1.23"


def test_accuracy_table(document):
    table = accuracy_table(
        document("srn", {"s": 1.0, "r": 0.75, "n": 0.5}, {"a": (0.75, 0.25), "b": (0.5, 0.0)})
    )
    assert rows(table) == [
        ("natural", "100.00", "75.00", "50.00", "-"),
        ("a, each way through itself", "6.25", "75.00", "25.00", "50.00"),
        ("a, all through the standard way", "6.25", "37.50", "12.50", "25.00"),
        ("b, each way through itself", "6.25", "50.00", "0.00", "50.00"),
        ("b, all through the standard way", "6.25", "25.00", "0.00", "25.00"),
    ]


def test_ways_that_were_not_trained_show_a_dash(document):
    one_way = document("r", {"r": 0.75}, {"a": (0.5, None)})
    assert rows(accuracy_table(one_way)) == [
        ("natural", "-", "75.00", "-", "-"),
        ("a, each way through itself", "-", "50.00", "-", "-"),
    ]
    assert detection_table(one_way) is None


def test_detection_table(document):
    table = detection_table(document("srn", {"s": 1.0, "r": 0.75, "n": 0.5}, {"a": (0.75, 0.25)}))
    assert rows(table) == [
        ("half natural, half a", "75.00", "12.50", "81.25", "50.00", "62.50"),
        ("only a", "75.00", "-", "-", "6.25", "37.50"),
    ]


def test_comparison_in_markdown(document):
    run = document("srn", {"s": 0.5, "r": 0.5, "n": 0.5}, {"mnist-linf": (0.5, 0.25)})
    text = comparison_markdown(compare(TABLES["aat-table3"], {"aat": run}), "a note")
    lines = text.splitlines()
    assert lines[0] == "### Table 3: small CNN on MNIST (percent)"
    assert lines[2] == "| Method |  | natural S | natural R | natural N | l2 R | l2 N | l2 DIA |"
    assert "| AAT | ours | 50.00 | 50.00 | 50.00 | 50.00 | 25.00 | 25.00 |" in lines
    assert "|  | paper | 99.60 | 99.60 | 99.50 | 82.90 | 4.60 | 78.30 |" in lines
    assert "|  | diff. | -49.60 | -49.60 | -49.50 | -32.90 | +20.40 | -53.30 |" in lines
    assert lines[-1] == "a note"


def test_comparison_on_a_terminal_says_the_same(document):
    run = document("srn", {"s": 0.5, "r": 0.5, "n": 0.5}, {"mnist-linf": (0.5, 0.25)})
    table = comparison_table(compare(TABLES["aat-table3"], {"aat": run}))
    assert ("AAT", "ours", "50.00", "50.00", "50.00", "50.00", "25.00", "25.00") in rows(table)


def test_widest_comparison_fits_into_80_characters(document):
    attacked = {"cifar-linf": (0.1, 0.1), "cifar-l2-sign": (0.125, 0.125)}
    run = document("srn", {"s": 1.0, "r": 0.125, "n": 0.125}, attacked)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(comparison_table(compare(TABLES["aat-table1"], {"aatpp": run})))
    last = captured.get().splitlines()[-1]
    assert " ".join(last.split()) == "diff. +5.90 -76.20 -81.20 -29.90 +10.00 -39.90 -70.00 +7.20 -77.20"


def test_ablation_has_no_printed_numbers(document):
    run = document("srn", {"s": 0.5, "r": 0.5, "n": 0.5}, {"cifar-l2-sign": (0.5, 0.25)})
    text = comparison_markdown(compare(TABLES["aat-ablation"], {"terms:st,as": run}))
    assert "| ST+AS | ours | 50.00 | 50.00 | 50.00 | 50.00 | 25.00 | 25.00 |" in text
    assert "paper" not in text
