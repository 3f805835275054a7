"""The paper's numbers as data: complete, in range, and consistent where the paper derives one from two others."""

import pytest

from robustfast.evaluation.attacks import ATTACKS
from robustfast.evaluation.papers.aat.numbers import METHODS, TABLES

TRIPLES = [
    (name, method, attack, numbers)
    for name, table in TABLES.items()
    for method, row in table.rows.items()
    for attack, numbers in (row.attacked or {}).items()
    if numbers.dia is not None
]


def test_every_printed_dia_is_covered():
    # Tables 1 and 2 print four DIA per attack, table 3 three; tables 6 and 7 three per attack, table 8 two.
    assert len(TRIPLES) == 8 + 8 + 3 + 6 + 6 + 2


@pytest.mark.parametrize(("name", "method", "attack", "numbers"), TRIPLES)
def test_dia_is_robust_minus_non_robust(name, method, attack, numbers):
    assert round(numbers.r - numbers.n, 1) == numbers.dia


def test_tables_and_rows():
    assert {name: list(table.rows) for name, table in TABLES.items()} == {
        "aat-table1": ["st", "at", "st+at", "pi", "aat", "aatpp"],
        "aat-table2": ["st", "at", "st+at", "pi", "aat", "aatpp"],
        "aat-table3": ["st", "at", "st+at", "aat", "aatpp"],
        "aat-table4b": ["pi", "aat", "aatpp"],
        "aat-table6": ["st", "at", "pi", "aat", "aatpp"],
        "aat-table7": ["st", "at", "pi", "aat", "aatpp"],
        "aat-table8": ["st", "at", "aat", "aatpp"],
        "aat-ablation": [method for method in METHODS if method.startswith("terms:")],
    }


def test_one_way_rows_show_their_way_alone():
    for table in TABLES.values():
        for method, absent in (("st", "r"), ("at", "n")):
            row = table.rows.get(method)
            if row is None:
                continue
            for numbers in row.attacked.values():
                assert getattr(numbers, absent) is None
                assert numbers.s is None
                assert numbers.dia is None
            if row.natural is not None:
                assert row.natural.s is None
                assert getattr(row.natural, absent) is None


def test_combined_row_takes_its_numbers_from_the_one_way_rows():
    for name in ("aat-table1", "aat-table2", "aat-table3"):
        rows = TABLES[name].rows
        assert rows["st+at"].natural.r == rows["at"].natural.r
        assert rows["st+at"].natural.n == rows["st"].natural.n
        for attack, numbers in rows["st+at"].attacked.items():
            assert numbers.r == rows["at"].attacked[attack].r
            assert numbers.n == rows["st"].attacked[attack].n


def test_numbers_are_percentages_under_known_attacks():
    for table in TABLES.values():
        assert set(table.attacks) <= set(ATTACKS)
        for method, row in table.rows.items():
            assert method in METHODS
            assert set(row.attacked or {}) <= set(table.attacks)
            groups = [row.natural, row.detection, *(row.attacked or {}).values()]
            values = [value for group in groups if group is not None for value in vars(group).values()]
            assert all(value is None or 0 <= value <= 100 for value in values)
