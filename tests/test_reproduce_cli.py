"""`python -m robustfast.reproduce`: a table or figure from what is missing, also after a kill at any moment."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
from rich.console import Console

from robustfast.command_line import main_wrapper
from robustfast.data import Dataset
from robustfast.evaluation.comparison import Cell, Column, Comparison
from robustfast.evaluation.papers import ITEMS
from robustfast.evaluation.papers.part_tables import Lead, PartTable, Row
from robustfast.evaluation.reduced_data import FORMATS
from robustfast.reproduce import main, that_fit
from robustfast.training.engine import Engine
from robustfast.training.run_folder import load_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with a data set of a few random images in MNIST's format."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mnist").mkdir()
    draws = torch.Generator().manual_seed(0)
    splits = {
        split: Dataset(
            name="mnist",
            images=torch.randint(0, 256, (images, 1, 28, 28), dtype=torch.uint8, generator=draws),
            labels=torch.randint(0, 10, (images,), generator=draws),
            classes=tuple("0123456789"),
        )
        for split, images in (("train", 48), ("test", 16))
    }
    FORMATS["mnist"](folder / "mnist", splits)
    return folder


def arguments(table, data, out, *more):
    return [table, "--scale", "smoke", "--data-dir", str(data), "--out", str(out), "--device", "cpu", *more]


def call(capsys, argv):
    code = main_wrapper(main, argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_killed_and_called_again_keeps_finished_rows(data, warm, tmp_path, capsys):
    out = tmp_path / "out"
    first, last = (
        out / "smoke" / f"mnist-{method}" / "evaluation" / "aat.json" for method in ("st", "aatpp")
    )
    argv = arguments("aat-table3", data, out)
    with warm.command("-m", "robustfast.reproduce", *argv) as process:
        while not first.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    assert not last.exists()
    kept = {file: file.stat().st_mtime_ns for file in first.parents[1].rglob("*") if file.is_file()}

    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert "finished" in printed
    assert "training mnist-st" not in printed
    assert "training mnist-aatpp" in printed

    values = json.loads((out / "smoke" / "aat-table3.json").read_text())
    assert values["comparable"] is False
    assert list(values["rows"]) == ["st", "at", "st+at", "aat", "aatpp"]
    row = values["rows"]["aatpp"]["mnist-linf.adversarial.dia"]
    assert row["paper"] == pytest.approx(0.899)
    assert row["difference"] == pytest.approx(row["ours"] - 0.899)
    assert values["rows"]["st+at"]["natural.n"]["ours"] == values["rows"]["st"]["natural.n"]["ours"]
    assert values["attacks"][0]["steps"] == 2
    assert "| AAT++ | ours |" in (out / "smoke" / "aat-table3.md").read_text()

    # All there: nothing is trained or attacked again, and another table of the same runs needs nothing more.
    for table in ("aat-table3", "aat-table8"):
        code, printed, err = call(capsys, arguments(table, "nowhere", out))
        assert (code, err) == (0, "")
        assert "nothing to run: all rows are finished" in printed
        assert "training" not in printed.replace("training images", "")
    assert json.loads((out / "smoke" / "aat-table8.json").read_text())["rows"]["aat"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_trains_is_told_in_its_own_words(data, tmp_path, capsys, monkeypatch, number):
    step, made = Engine.step, []

    def asked(self, *args, **keywords):
        made.append(None)
        os.kill(os.getpid(), number)
        return step(self, *args, **keywords)

    monkeypatch.setattr(Engine, "step", asked)
    code, _, err = call(capsys, arguments("aat-table3", data, tmp_path))
    assert (code, len(made)) == (128 + number, 1)
    assert err == f"stopped by {number.name}, the same command goes on from here\n"


def test_dry_run_says_what_it_would_do_and_does_nothing(data, tmp_path, capsys):
    code, printed, _ = call(capsys, arguments("aat-table3", data, tmp_path, "--dry-run"))
    assert code == 0
    assert printed.count("new: 1 epoch ") == 4
    assert "estimate: " in printed
    assert "the numbers say nothing about the method" in printed
    assert [entry.name for entry in (tmp_path / "smoke").iterdir()] == ["data"]


def test_other_settings_need_another_folder(data, tmp_path, capsys):
    folder = tmp_path / "smoke" / "mnist-st"
    code, _, _ = call(capsys, arguments("aat-table3", data, tmp_path, "--dry-run"))
    assert code == 0
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    code, _, err = call(capsys, arguments("aat-table3", data, tmp_path))
    assert code == 2
    assert "mnist-st is in the way" in err
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["aat-table9"], "unknown table 'aat-table9'; did you mean 'aat-table"),
        (["aat-table3", "--scale", "huge"], "huge"),
        (["aat-table3", "--data-dir", "nowhere"], "mnist"),
        (["aat-table2", "--data-dir", "nowhere", "--scale", "paper"], "cifar10"),
        ([], "Missing"),
    ],
)
def test_mistakes(argv, words, tmp_path, capsys):
    code, out, err = call(capsys, [*argv, "--out", str(tmp_path / "out")])
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert "Traceback" not in out + err


def test_ablation_of_random_images_is_drawn(data, tmp_path, capsys, monkeypatch):
    from robustfast.evaluation.papers.aat import numbers, tables

    # The ablation's own backbone takes minutes: the same rows on the small one.
    monkeypatch.setitem(tables.FAMILIES, "aat-ablation", "mnist")
    table = numbers.TABLES["aat-ablation"]
    monkeypatch.setitem(
        numbers.TABLES,
        "aat-ablation",
        numbers.PaperTable(table.title, table.source, {"mnist-linf": "l2"}, table.rows),
    )
    code, printed, err = call(capsys, arguments("aat-ablation", data, tmp_path))
    assert (code, err) == (0, "")
    assert "ST+AS+AR+AN" in printed
    assert (tmp_path / "smoke" / "aat-ablation.png").stat().st_size > 10_000
    values = json.loads((tmp_path / "smoke" / "aat-ablation.json").read_text())
    assert all(cell["paper"] is None for row in values["rows"].values() for cell in row.values())


@pytest.fixture
def of_parts(monkeypatch):
    """A table and a figure of AFD's, on digits and of cheap parts alone."""
    rows = {
        "nt": Row("NT", "digits-afd-nt", {"dimensions.units": 64}),
        "wgan": Row("AFD-WGAN", "digits-afd-wgan", {"dimensions.units": 28, "transfer.NT": 90.0}),
        "other": Row("theirs", None, {"transfer.NT": 12.34}),
    }
    columns = (Column("dimensions.units", "", "units", "count"), Column("transfer.NT", "made on", "NT"))
    table = PartTable(
        "afd-parts", "Parts", "afd", rows, columns=columns, against=("nt",), caveat="Few of them."
    )
    trained = {name: row for name, row in rows.items() if row.preset}
    lead = Lead("wgan", ("sensitivity",))
    figure = PartTable("afd-figure", "Moves", "afd", trained, against=("nt",), lead=lead)
    for item in (table, figure):
        monkeypatch.setitem(ITEMS, item.name, item)


def test_a_table_of_parts_is_made_kept_and_mended(of_parts, tmp_path, capsys):
    argv = ["afd-parts", "--scale", "smoke", "--out", str(tmp_path), "--device", "cpu"]
    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert "Few of them." in printed
    values = json.loads((tmp_path / "smoke" / "afd-parts.json").read_text())
    assert (values["protocol"], values["comparable"], values["images"]) == (
        "afd",
        False,
        {"nt": 16, "wgan": 16},
    )
    units = values["rows"]["wgan"]["dimensions.units"]
    assert (units["paper"], units["difference"]) == (28, units["ours"] - 28)
    assert values["rows"]["nt"]["transfer.NT"] == {"ours": None, "paper": None, "difference": None}
    assert 0 <= values["rows"]["wgan"]["transfer.NT"]["ours"] <= 1
    lines = (tmp_path / "smoke" / "afd-parts.md").read_text().splitlines()
    # A method that is not here has the paper's line alone, and counts are no percentages.
    assert "| theirs | paper | - | 12.34 |" in lines
    assert "|  | paper | 28 | 90.00 |" in lines
    assert lines[0] == "### Parts"

    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert "nothing to run: all rows are finished" in printed
    assert json.loads((tmp_path / "smoke" / "afd-parts.json").read_text()) == values

    # A part that is gone is made again, from the runs as they are; the others are kept.
    file = tmp_path / "smoke" / "digits-afd-wgan" / "evaluation" / "afd-custom.json"
    document = json.loads(file.read_text())
    del document["parts"]["dimensions"]
    file.write_text(json.dumps(document))
    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert "transfer: kept" in printed
    assert "epoch 1/1" not in printed
    assert json.loads((tmp_path / "smoke" / "afd-parts.json").read_text()) == values

    # A figure of the same runs trains nothing.
    code, printed, err = call(capsys, ["afd-figure", *argv[1:]])
    assert (code, err) == (0, "")
    assert "epoch 1/1" not in printed
    assert (tmp_path / "smoke" / "afd-figure.png").stat().st_size > 5_000
    numbers = json.loads((tmp_path / "smoke" / "afd-figure.json").read_text())["numbers"]
    assert numbers["nt"] == {}
    assert len(numbers["wgan"]["sensitivity"]["median"]) == len(numbers["wgan"]["sensitivity"]["eps"])


@pytest.fixture
def of_starts(monkeypatch):
    """A table of CD-VAE's on digits, of cheap parts, whose rows start from others and share a run."""
    rows = {
        "adv": Row(
            "hardened", "digits-cdvae-adv", start=("cdvae", "classifier_g=plain"), reads="norms.{0}.l1.mean"
        ),
        "plain": Row("of x", "digits-cdvae-x", only_lent=True),
        "of-g": Row("of G(x)", "digits-cdvae-g", start=("cdvae",), only_lent=True),
        "cdvae": Row("split", "digits-cdvae", settings={"mixup": False}, only_lent=True),
        "cross": Row("by D_G", of="cdvae", reads="cross.g.{0}.top1", printed={"g": 75.25}),
        "norms": Row("norms", of="cdvae", reads="norms.{0}.l1.mean"),
    }
    columns = (Column("g", "", "G(x)"), Column("r", "", "R(x)", "value"))
    table = PartTable(
        "cdvae-starts", "Starts", "cdvae", rows, columns=columns, source="plain", against=("of-g",),
        smoke_images=(256, 24),
    )  # fmt: skip
    monkeypatch.setitem(ITEMS, table.name, table)


def test_rows_are_trained_from_others_and_kept(of_starts, tmp_path, capsys):
    argv = ["cdvae-starts", "--scale", "smoke", "--out", str(tmp_path), "--device", "cpu"]
    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    folder = tmp_path / "smoke"
    trained = [line.split()[1] for line in printed.splitlines() if line.startswith("training ")]
    assert trained == ["digits-cdvae", "digits-cdvae-x", "digits-cdvae-adv", "digits-cdvae-g"]
    split, of_g = folder / "digits-cdvae-False", folder / "digits-cdvae-g-from-digits-cdvae-False"
    assert f"starts from {split}: generator" in printed
    # G is what D_G was trained on: it has not moved.
    mine, theirs = (load_run(run, device="cpu").model.generator.state_dict() for run in (of_g, split))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    values = json.loads((folder / "cdvae-starts.json").read_text())
    assert list(values["rows"]) == ["adv", "cross", "norms"]
    assert values["images"] == {"adv": 24, "cdvae": 24}
    assert 0 <= values["rows"]["cross"]["g"]["ours"] <= 1
    assert values["rows"]["cross"]["g"]["paper"] == pytest.approx(0.7525)
    assert all(values["rows"][row][key]["ours"] > 0 for row in ("adv", "norms") for key in "gr")
    document = json.loads((split / "evaluation" / "cdvae-custom.json").read_text())
    assert set(document["parts"]) == {"norms", "cross"}
    assert document["parts"]["norms"]["numbers"]["attack"]["steps"] == 2
    assert not (of_g / "evaluation").exists()

    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert "nothing to run: all rows are finished" in printed

    # What is gone of an evaluation is made again, from the runs as they are.
    shutil.rmtree(split / "evaluation")
    code, printed, err = call(capsys, argv)
    assert (code, err) == (0, "")
    assert "epoch 1/1" not in printed
    assert json.loads((folder / "cdvae-starts.json").read_text()) == values


def test_a_table_wider_than_the_screen_is_several(capsys):
    item = ITEMS["cdvae-digits"]
    cells = tuple(Cell(ours=number / 100, paper=None) for number in range(len(item.columns)))
    wide = Comparison("Title", item.columns, {"cdvae": cells}, {"cdvae": "CD-VAE"})
    console = Console(width=80)
    tables = that_fit(wide, "a note", console)
    for table in tables:
        console.print(table)
    lines = capsys.readouterr().out.splitlines()
    values = " ".join(line for line in lines if "ours" in line)
    assert all(f"{number}.00" in values or f"{number / 100:.3f}" in values for number in range(len(cells)))
    assert not any("…" in line for line in lines)
    assert [line.strip() for line in lines].count("a note") == 1
    assert len(tables) == 2
    assert len(that_fit(wide, "a note", Console(width=200))) == 1
