"""The evaluation file: laid out as documented, read back as written, never half there."""

import json

import pytest

from robustfast.errors import UserError
from robustfast.evaluation.document import assemble, read, records, write


@pytest.fixture
def two_attacks(document):
    return document("srn", {"s": 1.0, "r": 0.75, "n": 0.5}, {"a": (0.75, 0.25), "b": (0.5, 0.0)})


def test_first_attack_stands_at_the_top(two_attacks):
    assert two_attacks["attack"]["name"] == "a"
    assert two_attacks["adversarial"] == {"r": 0.75, "n": 0.25, "dia": 0.5}
    assert list(two_attacks["other_attacks"]) == ["b"]
    assert two_attacks["other_attacks"]["b"]["adversarial"]["dia"] == 0.5


def test_records_are_what_was_assembled(two_attacks):
    found = records(two_attacks)
    assert list(found) == ["a", "b"]
    header = {key: two_attacks[key] for key in ("protocol", "dataset", "split", "images", "ways", "natural")}
    assert assemble(header, found) == two_attacks


def test_no_attack_is_refused():
    with pytest.raises(ValueError, match="at least one attack"):
        assemble({"natural": {}}, {})


def test_round_trip(tmp_path, two_attacks):
    path = tmp_path / "evaluation" / "aat.json"
    write(path, two_attacks)
    assert read(path) == two_attacks
    assert [entry.name for entry in path.parent.iterdir()] == ["aat.json"]


def test_nan_never_reaches_the_file(tmp_path, two_attacks):
    path = tmp_path / "aat.json"
    write(path, two_attacks)
    with pytest.raises(ValueError, match="JSON"):
        write(path, {**two_attacks, "natural": {"s": float("nan")}})
    assert read(path) == two_attacks


def test_folder_that_cannot_be_written_is_one_line(tmp_path, two_attacks):
    (tmp_path / "evaluation").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot make the folder .*evaluation"):
        write(tmp_path / "evaluation" / "aat.json", two_attacks)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist: run python -m robustfast.evaluate"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "not an evaluation"),
        (json.dumps({"protocol": "rfd", "natural": {}}).encode(), "not an evaluation"),
    ],
)
def test_bad_files_are_one_line(tmp_path, content, words):
    path = tmp_path / "aat.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read(path)
