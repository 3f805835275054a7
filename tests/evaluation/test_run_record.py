"""What a run's folder says: how far it is, what it is called, and that damage is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robustfast.errors import UserError
from robustfast.evaluation.paper_row import paper_rows
from robustfast.evaluation.run_record import RunRecord, flat_config, read_runs
from robustfast.evaluation.side_by_side import (
    accuracy_lines,
    config_lines,
    machine_lines,
    throughput_lines,
)
from robustfast.training.config import TrainConfig, to_json
from robustfast.training.presets import PRESETS

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, document: Callable[..., dict]) -> Make:
    """make(name, epochs=3, evaluated={...}, config=...) -> a run's folder without weights."""

    def build(
        name: str,
        *,
        epochs: int = 2,
        config: TrainConfig | None = None,
        attacked: dict | None = None,
        ways: str = "srn",
        **last: object,
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True)
        record = {
            "robustfast": "0.1.0",
            "commit": "abc",
            "started": "2026-01-01T00:00:00+0000",
            "hardware": {"cpu": "a processor", "cores": 2, "torch": "2.13.0"},
            "channels": 1,
            "num_classes": 10,
            "config": to_json(config or replace(PRESETS["digits-aatpp"], epochs=2)),
        }
        (path / "config.json").write_text(json.dumps(record))
        lines = [
            {"epoch": epoch, "loss": 1 / epoch, "seconds": 2.0, "images_per_second": 100.0 * epoch}
            for epoch in range(1, epochs + 1)
        ]
        if lines:
            lines[-1] |= last
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if attacked is not None:
            (path / "evaluation").mkdir()
            natural = dict.fromkeys(ways, 0.5)
            text = json.dumps(document(ways, natural, attacked))
            (path / "evaluation" / "aat.json").write_text(text)
        return path

    return build


def one(path: Path) -> RunRecord:
    (run,) = read_runs([path])
    return run


@pytest.mark.parametrize(
    ("epochs", "last", "status", "finished"),
    [
        (2, {}, "finished, 2 epochs", True),
        (1, {}, "unfinished, 1 of 2 epochs", False),
        (0, {}, "unfinished, 0 of 2 epochs", False),
        (1, {"stopped_early": True}, "stopped early after epoch 1 of 2", True),
    ],
)
def test_status_says_how_far_the_run_is(
    make: Make, epochs: int, last: dict, status: str, finished: bool
) -> None:
    run = one(make("a", epochs=epochs, **last))
    assert (run.status, run.finished) == (status, finished)
    assert run.checkpoints == ()


def test_labels_are_folder_names_and_paths_where_these_are_the_same(make: Make) -> None:
    first, second, third = make("x/a"), make("y/a"), make("b")
    assert [run.label for run in read_runs([first, second, third])] == [str(first), str(second), "b"]


def test_a_run_named_twice_is_refused(make: Make) -> None:
    path = make("a")
    with pytest.raises(UserError, match="is named twice"):
        read_runs([path, path / ".." / "a"])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", None),
        ("metrics.jsonl", "{\n"),
        ("metrics.jsonl", '{"epoch": 1, "loss": "much"}\n'),
        ("evaluation/aat.json", "{"),
        ("evaluation/aat.json", "[]"),
    ],
)
def test_damage_is_one_line_that_names_the_file(make: Make, file: str, content: str | None) -> None:
    path = make("a", attacked={"digits-linf": (0.5, 0.25)})
    if content is None:
        record = json.loads((path / file).read_text())
        content = json.dumps(record | {"hardware": [1]})
    (path / file).write_text(content)
    with pytest.raises(UserError, match=Path(file).name) as error:
        read_runs([path])
    assert "\n" not in str(error.value)


def test_accuracies_stand_side_by_side(make: Make) -> None:
    runs = read_runs(
        [
            make("a", attacked={"digits-linf": (0.75, 0.25)}),
            make("b"),
            make("c", attacked={"digits-linf": (0.5, None)}, ways="r"),
        ]
    )
    found = {(line.group, line.name): line.values for line in accuracy_lines(runs)}
    own = "digits-linf: each way attacked through itself"
    assert found[own, "R, robust"] == (0.75, None, 0.5)
    assert found[own, "N, non-robust"] == (0.25, None, None)
    assert found[own, "DIA = R − N"] == (0.5, None, None)
    assert found["natural images", "S, standard"] == (0.5, None, None)
    detection = [name for group, name in found if "detection" in group]
    assert len(detection) == 5
    assert all(any(value is not None for value in values) for values in found.values())


@pytest.mark.parametrize("value", ['"x"', "7", "[0.5]"])
def test_an_accuracy_that_is_no_fraction_is_damage(make: Make, value: str) -> None:
    path = make("a", attacked={"digits-linf": (0.75, 0.25)})
    file = path / "evaluation" / "aat.json"
    file.write_text(file.read_text().replace("0.75", value, 1))
    with pytest.raises(UserError, match=r"aat\.json is damaged"):
        accuracy_lines([one(path)])


def test_configurations_differ_where_they_do(make: Make) -> None:
    config = replace(PRESETS["digits-aatpp"], epochs=2)
    other = replace(PRESETS["digits-at"], epochs=2, lr=0.1, attack=replace(config.attack, eps=0.2))
    lines = config_lines(read_runs([make("a", config=config), make("b", config=other)]))
    differing = {line.name: line.values for line in lines if line.differs}
    assert differing["lr"] == (0.05, 0.1)
    assert differing["attack.eps"] == (0.1, 0.2)
    assert differing["objective.terms"] == (["st", "as", "ar", "an"], None)
    assert differing["objective.half"] == (None, True)
    assert "batch_size" not in differing
    assert {line.name for line in lines} >= set(flat_config(config)) | set(flat_config(other))


def test_machine_and_throughput(make: Make) -> None:
    runs = read_runs([make("a"), make("b", epochs=0)])
    machine = {line.name: line.values for line in machine_lines(runs)}
    assert machine["cpu"] == ("a processor", "a processor")
    assert machine["commit"] == ("abc", "abc")
    speed = {line.name: line.values for line in throughput_lines(runs)}
    assert speed["images/s, median of the epochs"] == (150.0, None)
    assert speed["images/s, fastest epoch"] == (200.0, None)
    assert speed["all epochs"] == (4.0, None)


def test_the_papers_row_is_that_of_the_method_and_says_what_was_different(make: Make) -> None:
    config = replace(PRESETS["mnist-aatpp"], epochs=3, seed=7, device="cpu")
    run = one(make("a", config=config, attacked={"mnist-linf": (0.75, 0.25)}))
    rows = paper_rows(run)
    assert [row.comparison.title.partition(":")[0] for row in rows] == ["Table 3", "Table 8"]
    cells = dict(zip(rows[0].comparison.columns, rows[0].comparison.rows["aatpp"], strict=True))
    (robust,) = [cell for column, cell in cells.items() if column.key == "mnist-linf.adversarial.r"]
    assert (robust.ours, robust.paper) == (0.75, pytest.approx(0.899))
    assert rows[0].departures == ("--epochs 3 (was 56)",)


@pytest.mark.parametrize(
    ("config", "attack"),
    [
        (PRESETS["digits-aatpp"], "digits-linf"),  # no table has digits
        (PRESETS["mnist-trades"], "mnist-linf"),  # nor TRADES
        (replace(PRESETS["mnist-aatpp"], model="preact_resnet18"), "mnist-linf"),
        (
            replace(
                PRESETS["mnist-aatpp"], objective=replace(PRESETS["mnist-aatpp"].objective, terms=("st",))
            ),
            "mnist-linf",
        ),
        (PRESETS["mnist-aatpp"], "mnist-l2"),  # evaluated under another attack
    ],
)
def test_no_row_where_the_paper_has_none(make: Make, config: TrainConfig, attack: str) -> None:
    assert paper_rows(one(make("a", config=config, attacked={attack: (0.75, 0.25)}))) == []
    assert paper_rows(one(make("b", config=config))) == []
