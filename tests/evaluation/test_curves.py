"""Reading the held-out checks back from metrics.jsonl."""

import json

import pytest

from robustfast.errors import UserError
from robustfast.evaluation.curves import Series, held_out_curves, metric_lines, series


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_epochs_without_a_check_are_left_out(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"epoch": 1, "loss": 2.0},
        {"epoch": 2, "natural": {"s": 0.5, "r": 0.25}, "adversarial": {"r": 0.125}},
        {"epoch": 3, "loss": 1.0},
        {"epoch": 4, "natural": {"s": 0.75, "r": 0.5}, "adversarial": {"r": 0.25}},
    )
    curves = held_out_curves(path)
    assert curves.epochs == [2, 4]
    assert curves.natural == {"s": [0.5, 0.75], "r": [0.25, 0.5]}
    assert curves.adversarial == {"r": [0.125, 0.25]}


def test_no_check_gives_empty_curves(tmp_path):
    assert held_out_curves(write(tmp_path / "metrics.jsonl", {"epoch": 1})).epochs == []


@pytest.mark.parametrize("line", ["{", '{"natural": {}}', "3", '{"natural": {"s": 1}, "epoch": 1}'])
def test_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        held_out_curves(path)


def test_run_inside_its_first_epoch_has_no_curves(tmp_path):
    assert held_out_curves(tmp_path / "metrics.jsonl").epochs == []


def test_unreadable_file_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot read"):
        held_out_curves(tmp_path / "metrics.jsonl")


def test_a_line_that_is_being_written_is_no_record_yet(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {"epoch": 1}, {"epoch": 2})
    path.write_text(path.read_text() + '{"epoch": 3, "lo')
    assert metric_lines(path) == [{"epoch": 1}, {"epoch": 2}]


def test_every_number_becomes_a_series(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"epoch": 1, "loss": 2.0, "terms": {"ar": 1.5}},
        {"epoch": 2, "loss": 1.0, "terms": {"ar": 0.5}, "natural": {"r": 0.25}},
    )
    found = series(path, metric_lines(path))
    assert found == {
        "loss": Series([1, 2], [2.0, 1.0]),
        "terms/ar": Series([1, 2], [1.5, 0.5]),
        "natural/r": Series([2], [0.25]),
    }


def test_a_value_that_is_no_number_is_named(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": [1]})
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is damaged"):
        series(path, metric_lines(path))
