"""AFD's, RFD's and CD-VAE's tables as data: printed numbers written out once more, and what each table needs."""

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
from robustfast.evaluation.tables import comparison_markdown
from robustfast.training.config import differences
from robustfast.training.presets import PRESETS

OF_PARTS = {name: item for name, item in ITEMS.items() if isinstance(item, PartTable)}


def printed(name, row):
    """The numbers of a row in the order of the columns, as the paper prints them."""
    item = ITEMS[name]
    return [item.rows[row].printed.get(column.key) for column in item.columns]


def test_everything_is_named_after_its_paper():
    assert list(PAPERS) == ["aat", "afd", "rfd", "cdvae"]
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
    assert {name for name in ITEMS if name.startswith("cdvae")} == {
        *(f"cdvae-table{number}" for number in ("1", "2", "3-cifar10", "3-rimagenet", "4", "5")),
        *(f"cdvae-table{number}" for number in ("6-cifar10", "6-rimagenet", "7")),
        *(f"cdvae-fig{number}" for number in ("2", "3", "4-cifar10", "4-rimagenet")),
        *(
            f"cdvae-{data}{table}"
            for data in ("digits", "mnist")
            for table in ("", "-grey-box", "-white-box")
        ),
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
        ("cdvae-table1", "g", [(0.9997, 0.0003), 0.90]),
        ("cdvae-table1", "r", [(0.9460, 0.0260), 22.31]),
        ("cdvae-table2", "delta_g", [(4.15, 0.65), (16.56, 2.47), (0.39, 0.17)]),
        ("cdvae-table2", "r_adv", [(38.13, 11.06), 131.20, 2.46]),
        ("cdvae-table3-cifar10", "g", [51.84, 86.52, 25.67, 68.98, 75.25, 97.39]),
        ("cdvae-table3-rimagenet", "r", [63.33, 82.14, 82.14, 96.47, 5.36, 12.01]),
        ("cdvae-table4", "lid r", [92.60, 98.59, 86.42, 97.29, 76.42, 95.10, 87.54, 97.57, 87.63, 97.38]),
        ("cdvae-table5", "md x", [34.69, 84.96, 99.33, 99.78, 98.72, 99.61, 99.18, 99.70, 44.16, 82.61]),
        ("cdvae-table6-cifar10", "ape-gan", [90.93, 59.28, 65.17, 59.23, 65.30, 7.28]),
        ("cdvae-table6-cifar10", "AT StAdv", [86.2, 0.1, 0.3, 0.2, 0.5, 53.9]),
        ("cdvae-table6-rimagenet", "ours", [65.26, 52.48, 63.12, 52.95, 64.98, 4.75]),
        ("cdvae-table7", "trades", [84.9, 31.0, 52.5, 23.3, None, 60.6, 9.2]),
        ("cdvae-table7", "ours-l2", [81.0, 50.4, 39.4, 42.4, 61.6, 72.2, 28.4]),
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
    # The undefended classifier on clean images; on restricted ImageNet what defends is that classifier on G(x).
    for data in ("cifar10", "rimagenet"):
        assert printed(f"cdvae-table3-{data}", "x")[0] == printed(f"cdvae-table6-{data}", "normal")[0]
    assert printed("cdvae-table3-rimagenet", "x")[4] == printed("cdvae-table6-rimagenet", "ours")[0]


def test_the_mean_over_unseen_attacks_is_that_of_its_columns():
    """Of each row but PAT's, which leaves out a column that it never trained on, and TRADES', which lacks one."""
    seen = {"at-linf": 0, "at-l2": 1, "AT ReColorAdv": 3, "AT StAdv": 4, "SAT-linf": 0, "OIA-linf": 0}
    seen |= {"ours-linf": 0, "ours-l2": 1}
    for row, column in seen.items():
        _, mean, *others = printed("cdvae-table7", row)
        del others[column]
        assert mean == pytest.approx(sum(others) / 4, abs=0.051), row


@pytest.mark.parametrize("name", OF_PARTS)
def test_numbers_are_within_their_unit(name):
    item = OF_PARTS[name]
    units = {column.key: column.unit for column in item.columns}
    most = {"percent": 100, "fraction": 1, "count": 512, "value": 430, "thousands": 143}
    for row in item.rows.values():
        for key, value in row.printed.items():
            assert 0 <= (value[0] if isinstance(value, tuple) else value) <= most[units[key]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", OF_PARTS)
def test_every_row_has_a_run_or_is_the_papers_alone(name, scale, tmp_path):
    item = OF_PARTS[name]
    made = plan(name, scale, tmp_path, data_dir=tmp_path)
    methods = [run.method for run in made.runs]
    assert methods == [row for row in item.rows if item.rows[row].preset is not None]
    assert len({run.path for run in made.runs}) == len(made.runs)
    assert len({run.config.dataset for run in made.runs}) == 1
    for name, row in item.rows.items():
        assert row.preset is not None or row.of is not None or row.printed
        assert row.of is None or row.of in methods
        for start in row.start:
            assert start.rpartition("=")[2] in methods[: methods.index(name)]
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


def test_rows_start_from_others_that_are_trained_before_them(tmp_path):
    rows = {
        "adv": Row("hardened", "digits-cdvae-adv", start=("cdvae", "classifier_g=plain")),
        "of-g": Row("of G(x)", "digits-cdvae-g", start=("cdvae",)),
        "cdvae": Row("split", "digits-cdvae", settings={"gamma": 0.5}, only_lent=True),
        "plain": Row("of x", "digits-cdvae-x", only_lent=True),
    }
    columns = (Column("reconstruction.g.accuracy.mean", "", "G(x)"),)
    found = PartTable("x", "x", "cdvae", rows, columns=columns).configs(tmp_path)
    assert list(found) == ["cdvae", "plain", "adv", "of-g"]
    assert {row: name for row, (name, _) in found.items()} == {
        "cdvae": "digits-cdvae-0.5",
        "plain": "digits-cdvae-x",
        "adv": "digits-cdvae-adv-from-digits-cdvae-0.5-digits-cdvae-x",
        # Not that of another table, which starts from another run.
        "of-g": "digits-cdvae-g-from-digits-cdvae-0.5",
    }
    split, plain = tmp_path / "digits-cdvae-0.5", tmp_path / "digits-cdvae-x"
    assert {row: config.start_from for row, (_, config) in found.items()} == {
        "cdvae": (),
        "plain": (),
        "adv": (f"{split}", f"classifier_g={plain}"),
        "of-g": (f"{split}",),
    }


@pytest.fixture
def shared():
    """Two rows of one run, and one that is only lent."""
    rows = {
        "plain": Row("of x", "digits-cdvae-x", only_lent=True),
        "cdvae": Row("lent", "digits-cdvae", only_lent=True),
        "g": Row("G(x)", of="cdvae", reads="reconstruction.{key}.accuracy.mean", printed={"g": 50.0}),
        "both": Row("both", of="cdvae", reads="norms.{0}.l1.mean", printed={"g": (7.0, 0.5), "r": 9.0}),
    }
    columns = (Column("g", "", "g"), Column("r", "", "r", "thousands"))
    return PartTable("x", "x", "cdvae", rows, columns=columns, source="plain")


NUMBERS = {
    "reconstruction": {"g": {"accuracy": {"mean": 0.25}}, "r": {"accuracy": {"mean": 0.5}}},
    "norms": {"g": {"l1": {"mean": 0.125}}, "r": {"l1": {"mean": 3000.0}}},
}


def test_rows_of_one_run_read_what_their_columns_ask_for(shared, tmp_path):
    evaluation = shared.evaluation(SCALES["smoke"])
    assert set(evaluation.wanted) == {"plain", "cdvae"}
    assert evaluation.wanted["plain"].parts == ()
    assert evaluation.wanted["cdvae"].parts == ("reconstruction", "norms")
    assert evaluation.wanted["cdvae"].source == "plain"
    document = {"parts": {name: {"numbers": numbers} for name, numbers in NUMBERS.items()}}
    comparison = shared.result(None, {"cdvae": document, "plain": {}}, tmp_path).comparison
    assert list(comparison.rows) == ["g", "both"]
    (g, _), (both, r) = comparison.rows["g"], comparison.rows["both"]
    assert (g.ours, g.paper, both.ours, both.paper, both.spread) == (0.25, 0.5, 0.125, 0.07, 0.005)
    assert (r.ours, r.paper) == (3000.0, 9000.0)
    assert "| both | ours | 12.50 | 3.00 |" in comparison_markdown(comparison)
    assert "|  | diff. | +5.50 | -6.00 |" in comparison_markdown(comparison)


def test_a_run_stands_beside_all_its_rows(shared, tmp_path):
    run = SimpleNamespace(path=tmp_path, config=PRESETS["digits-cdvae"])
    assert shared.beside(run) is None
    (tmp_path / "evaluation").mkdir()
    parts = {name: {"key": "", "numbers": numbers} for name, numbers in NUMBERS.items()}
    document = {"checkpoint": {"name": "last"}, "images": 9, "images_in_split": 9, "parts": parts}
    document_path(tmp_path, "cdvae").write_text(json.dumps(document))
    preset, comparison = shared.beside(run)
    assert preset == PRESETS["digits-cdvae"]
    assert list(comparison.rows) == ["g", "both"]
    assert shared.beside(SimpleNamespace(path=tmp_path, config=PRESETS["digits-cdvae-x"])) is None


def test_smoke_scale_keeps_the_images_and_steps_of_a_table(tmp_path):
    made = plan("cdvae-table4", "smoke", tmp_path, data_dir=tmp_path)
    assert made.images == 256
    assert "256 training images, 1 epoch, 256 test images" in made.note
    assert made.evaluation.steps == 2
    # Not the batches of a backbone of which the scale would keep a few images.
    assert all(128 <= run.config.batch_size <= 256 for run in made.runs)
    assert plan("cdvae-table4", "paper", tmp_path, data_dir=tmp_path).evaluation.steps is None


def test_tables_of_a_paper_that_share_a_run_train_it_alike(tmp_path):
    """A run of other batches would be refused in one folder for all tables."""
    runs = {}
    for name in PAPERS["cdvae"].items:
        for run in plan(name, "smoke", tmp_path, data_dir=tmp_path).runs:
            assert differences(run.config, runs.setdefault(run.path, run.config)) == [], name
    assert len(runs) > 30


def test_weights_of_the_fid_go_to_the_parts_that_take_them(tmp_path):
    made = plan("cdvae-table1", "smoke", tmp_path, data_dir=tmp_path)
    file = tmp_path / "weights"
    assert made.evaluation.taking(file).inception_weights == file
    run = next(run for run in made.runs if run.method == "cdvae")
    run.path.mkdir()
    (run.path / "metrics.jsonl").write_text("{}\n")
    part = {"similarity": {"key": "", "numbers": {}}}
    header = {"checkpoint": {"name": "last"}, "images": 256, "images_in_split": 256, "parts": part}
    document_path(run.path, "cdvae").parent.mkdir()
    document_path(run.path, "cdvae").write_text(json.dumps(header))
    assert made.evaluation.finished(run, made) == header
    # It may have been made without this file: the part itself knows.
    assert made.evaluation.taking(file).finished(run, made) is None


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
