"""AFD's and RFD's tables as data: printed numbers written out once more, and what each table needs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from robustfast.errors import UserError
from robustfast.evaluation.comparison import Column
from robustfast.evaluation.papers import ITEMS, PAPERS
from robustfast.evaluation.papers.part_tables import Lead, PartTable, Row
from robustfast.evaluation.parts import document_path
from robustfast.evaluation.protocols import PROTOCOLS
from robustfast.evaluation.reproducible import SCALES
from robustfast.evaluation.reproduction import plan
from robustfast.training.presets import PRESETS

OF_PARTS = {name: item for name, item in ITEMS.items() if isinstance(item, PartTable)}


def printed(name, row):
    """The numbers of a row in the order of the columns, as the paper prints them."""
    item = ITEMS[name]
    return [item.rows[row].printed.get(column.key) for column in item.columns]


def test_everything_is_named_after_its_paper():
    assert list(PAPERS) == ["aat", "afd", "rfd"]
    for paper, found in PAPERS.items():
        assert all(name.startswith(f"{paper}-") for name in found.items)
    assert {name for name in ITEMS if "table" in name and name.startswith("afd")} == {
        *(
            f"afd-table{number}-{data}"
            for number in "12"
            for data in ("mnist", "cifar10", "cifar100", "tiny")
        ),
        *(f"afd-tableA{number}-{data}" for number in "34" for data in ("mnist", "cifar10", "cifar100")),
        "afd-tableA5",
    }
    assert {f"rfd-fig{number}" for number in (1, 3, 4, 5, 6, 7, 8)} <= set(ITEMS)
    assert {
        "afd-fig2",
        "afd-fig3",
        "afd-figA5",
        *(f"afd-figA{number}" for number in (1, 2, 3, 6, 7, 8)),
    } <= set(ITEMS)


@pytest.mark.parametrize(
    ("name", "row", "numbers"),
    [
        ("afd-table1-mnist", "wgan", [99.14, 97.68, 97.68, 90.12, 98.59, 98.71]),
        ("afd-table1-cifar10", "nt", [94.89, 0.55, 0.31, 0.0, 17.93, None]),
        ("afd-table1-cifar10", "TRADES, published", [84.92, 56.61, None, None, 87.60, None]),
        ("afd-table1-tiny", "trades", [37.70, 13.26, 4.11, 12.57, 36.26, 36.72]),
        ("afd-table2-cifar10", "wgan", [0.56, 0.54, 0.66, 0.59, 0.56, 0.4, 0.52, 0.62, 0.24]),
        ("afd-table2-mnist", "at", [0.74, 0.29, 0.19, 0.83, 0.95, 0.49, 0.55, 0.87, 0.89]),
        ("afd-tableA3-cifar10", "trades", [78.43, None]),
        ("afd-tableA3-cifar100", "wgan", [43.59, 42.26]),
        ("afd-tableA4-cifar10", "wgan", [389, 12]),
        ("afd-tableA5", "fc3", [90.73]),
        ("rfd-table1", "rfd-trades", [83.50, 63.68, 52.80, 50.90, 52.70, 81.60]),
        ("rfd-table1", "LBGAT", [88.22, None, 54.66, 54.29, 52.23, None]),
        ("rfd-table1", "rfd-mart", [82.16, 63.91, 52.67, 49.44, 51.20, 82.60]),
        ("rfd-table2", "rfd-um", [96.36, 46.33, 0.33, 0.37]),
        ("rfd-table3-tiny", "rfd", [(46.54, 0.49), (24.78, 0.18), (28.29, 0.32), (20.64, 0.16)]),
        ("rfd-table4-inception_resnet_v2", "rfd-mart", [52.64, 35.44]),
        ("rfd-table5-svhn", "rfd", [92.6, 90.4, 55.1, 55.0]),
        ("rfd-detection", "rfd", [99.86, 100.0, 96.20, 57.88]),
        ("rfd-spsa", "rfd", [57.97, 80.21]),
        ("rfd-fig6", "rfd", [58.38, 57.97, None, 57.82]),
    ],
)  # fmt: skip
def test_printed_numbers(name, row, numbers):
    assert printed(name, row) == numbers


def test_one_method_has_one_row_wherever_it_stands():
    # RFD's table I took this row from AFD's, which has it in table 1.
    assert printed("rfd-table1", "AFD-WGAN")[0] == printed("afd-table1-cifar10", "wgan")[0]
    # Its text repeats numbers of its tables.
    assert (
        printed("rfd-fig6", "rfd")[1] == printed("rfd-spsa", "rfd")[0] == printed("rfd-table1", "rfd")[2][0]
    )


@pytest.mark.parametrize("name", OF_PARTS)
def test_numbers_are_within_their_unit(name):
    item = OF_PARTS[name]
    units = {column.key: column.unit for column in item.columns}
    most = {"percent": 100, "fraction": 1, "count": 512}
    for row in item.rows.values():
        for key, value in row.printed.items():
            assert 0 <= (value[0] if isinstance(value, tuple) else value) <= most[units[key]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", OF_PARTS)
def test_every_row_has_a_run_or_is_the_papers_alone(name, scale, tmp_path):
    item = OF_PARTS[name]
    made = plan(name, scale, tmp_path, data_dir=tmp_path)
    assert [run.method for run in made.runs] == [
        row for row in item.rows if item.rows[row].preset is not None
    ]
    assert len({run.path for run in made.runs}) == len(made.runs)
    assert len({run.config.dataset for run in made.runs}) == 1
    for row in item.rows.values():
        assert row.preset is not None or row.printed
    known = {part.name: part for part in PROTOCOLS[item.protocol]}
    for row, wanted in made.evaluation.wanted.items():
        for part in wanted.parts:
            for need in known[part].needs:
                assert getattr(wanted, need), f"{part} of {row} needs a {need}"
        assert wanted.source != row
        assert row not in wanted.against
    assert any(wanted.parts for wanted in made.evaluation.wanted.values())
    if scale == "paper":
        for run in made.runs:
            row = item.rows[run.method]
            if not row.settings and not row.fields:
                preset = PRESETS[row.preset]
                assert (run.config.epochs, run.config.attack, run.config.objective) == (
                    preset.epochs,
                    preset.attack,
                    preset.objective,
                )


def test_black_box_images_come_from_the_natural_run(tmp_path):
    wanted = plan("afd-table1-mnist", "smoke", tmp_path, data_dir=tmp_path).evaluation.wanted
    assert wanted["nt"].parts == ("nominal",)
    assert wanted["nt"].source is None
    assert wanted["wgan"].parts == ("nominal", "black-box")
    assert wanted["wgan"].source == "nt"


def test_transferred_images_come_from_the_other_runs(tmp_path):
    evaluation = plan("afd-tableA3-mnist", "smoke", tmp_path, data_dir=tmp_path).evaluation
    assert {row: wanted.against for row, wanted in evaluation.wanted.items()} == {
        "at": ("trades",),
        "trades": ("at",),
        "wgan": ("at", "trades"),
    }
    assert evaluation.waits


def test_tables_share_runs(tmp_path):
    def runs(name):
        return {run.path: run.config for run in plan(name, "small", tmp_path, data_dir=tmp_path).runs}

    table, figure = runs("afd-table1-mnist"), runs("afd-figA4-mnist")
    assert set(figure) < set(table)
    assert all(table[path] == config for path, config in figure.items())


def test_variants_are_runs_of_their_own(tmp_path):
    made = plan("afd-tableA5", "paper", tmp_path, data_dir=tmp_path)
    assert {run.method: (run.path.name, run.config.objective.discriminator) for run in made.runs} == {
        "fc1-pd": ("mnist-afd-wgan-fc1-pd", "fc1-pd"),
        "fc3": ("mnist-afd-wgan-fc3", "fc3"),
        "fc3-pd": ("mnist-afd-wgan", "fc3-pd"),
    }
    losses = {
        run.method: run.config.objective
        for run in plan("rfd-table1", "paper", tmp_path, data_dir=tmp_path).runs
    }
    assert (losses["rfd-cw"].attack_loss, losses["rfd-dlr"].attack_loss) == ("margin", "dlr")
    # Theirs, not the scale's, whose steps they would otherwise be.
    assert losses["rfd"].steps == (8, 16, 24, 32)


def test_smoke_scale_says_which_backbones_it_leaves_out(tmp_path):
    made = plan("rfd-table1", "smoke", tmp_path, data_dir=tmp_path)
    assert {run.config.model for run in made.runs} == {"wide_resnet10_1"}
    assert "wide_resnet10_1 in place of wide_resnet34_10" in made.note
    assert made.images == 4
    ours = next(run for run in made.runs if run.method == "rfd")
    assert ours.config.objective.steps == (2,)
    assert (ours.config.early_stop, ours.config.hold_out) == (0, 0)


def test_a_run_that_stopped_early_stands_beside_the_paper_by_its_best_weights(tmp_path):
    item, run = ITEMS["rfd-table1"], SimpleNamespace(path=tmp_path, config=PRESETS["cifar10-rfd"])
    assert run.config.early_stop

    def evaluated(checkpoint, images, clean):
        document = {
            "checkpoint": {"name": checkpoint},
            "images": images,
            "images_in_split": 10000,
            "parts": {"nominal": {"key": "", "numbers": {"clean": clean}}},
        }
        whole = (checkpoint, images) == ("last", 10000)
        path = document_path(tmp_path, "rfd", whole=whole)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))

    def shown():
        found = item.beside(run)
        return None if found is None else found[1].rows["rfd"][0].ours

    assert shown() is None
    evaluated("best", 500, 0.5)
    assert shown() is None
    evaluated("last", 10000, 0.75)
    assert shown() == 0.75
    evaluated("best", 10000, 0.875)
    assert shown() == 0.875
    # What was not chosen by images that were set aside is no best.
    run.config = replace(run.config, early_stop=0)
    assert shown() == 0.75


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": (Column("telepathy.clean", "", "clean"),)}, "needs part telepathy of protocol afd"),
        ({"lead": Lead("row", ("telepathy",))}, "needs part telepathy of protocol afd"),
        ({"rows": {"row": Row("NT", "digits-afd-telepathy")}}, "needs the preset digits-afd-telepathy"),
    ],
)
def test_what_is_not_there_is_one_line(changes, words, tmp_path):
    fields = {"rows": {"row": Row("NT", "digits-afd-nt")}, "columns": (Column("nominal.clean", "", "clean"),)}
    item = PartTable("x", "x", "afd", **(fields | changes))
    with pytest.raises(UserError, match=words) as mistake:
        item.configs(tmp_path)
    assert "\n" not in str(mistake.value)
