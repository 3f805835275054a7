"""The stage that trains table 2, really made on the CPU: on the digits, and on a few images of CIFAR-10."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from warm import Warm

from robustfast.data import Dataset
from robustfast.evaluation.comparison import Cell, Column, Comparison
from robustfast.evaluation.papers import ITEMS
from robustfast.evaluation.reduced_data import REDUCIBLE
from robustfast.evaluation.reproducible import Scale

ROOT = Path(__file__).resolve().parents[2]
PACKED = Path(os.environ.get("ROBUSTFAST_TEST_DATA", ROOT.parent / "shared" / "data"))
TINY = ["--device", "cpu", "--smoke", "--epochs", "1", "--images", "16"]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """bench/table2.py; pytest finds what is in bench/."""
    return importlib.import_module("table2")


def table2(warm: Warm, out: Path, *arguments: str | Path, code: int = 0) -> tuple[dict[str, Any], str]:
    done = warm.run("bench/table2.py", *TINY, "--out", out, *arguments, cwd=ROOT)
    assert done.returncode == code, done.stderr
    return json.loads(out.read_text()) if out.exists() else {}, done.stdout + done.stderr


def test_it_trains_evaluates_and_goes_on(warm: Warm, tmp_path: Path) -> None:
    out = tmp_path / "table2.json"
    digits = ["--family", "digits"]
    report, _ = table2(warm, out, *digits, "--methods", "at")
    assert set(report["rows"]) == {"at"}
    kept = tmp_path / "table2-runs" / "at-seed0" / "checkpoints" / "last.pt"
    before = kept.stat().st_mtime_ns
    report, printed = table2(warm, out, *digits, "--methods", "at", "st")
    assert set(report["rows"]) == {"at", "st", "st+at"}
    assert set(report["runs"]) == {"at-seed0", "st-seed0"}
    assert report["not_run"] == {}
    # A finished row is not made again.
    assert kept.stat().st_mtime_ns == before
    assert "training digits-at" not in printed
    run = report["runs"]["at-seed0"]["config"]
    assert (run["schedule"], run["epochs"], run["lr"], run["attack"]["steps"]) == ("onecycle", 1, 0.1, 2)
    cell = report["rows"]["st+at"]["cifar-linf.adversarial.dia"]
    robust = report["rows"]["at"]["cifar-linf.adversarial.r"]["ours"]
    plain = report["rows"]["st"]["cifar-linf.adversarial.n"]["ours"]
    assert cell["ours"] == pytest.approx(robust - plain)
    # These are not the paper's images.
    assert all(c["paper"] is None for row in report["rows"].values() for c in row.values())
    assert {"device", "torch", "commit"} <= set(report["hardware"])
    assert report["images"] == 16
    assert str(tmp_path) not in out.read_text()
    # A run of another configuration is not gone on with, in one line.
    _, printed = table2(warm, out, *digits, "--methods", "at", "--lr", "0.2", code=2)
    assert "lr" in printed
    assert "Traceback" not in printed


def test_real_images_stand_beside_the_papers_numbers(warm: Warm, tmp_path: Path) -> None:
    archive = PACKED / "cifar10-jpeg" / "test.tar.xz"
    if not archive.exists():
        pytest.skip(
            f"no CIFAR-10 in {PACKED}: set ROBUSTFAST_TEST_DATA to the folder that holds cifar10-jpeg/"
        )
    image = pytest.importorskip("PIL.Image")
    pixels, labels, classes = [], [], []
    with tarfile.open(archive) as tar:
        for member in (m for m in tar if m.isfile()):
            name = Path(member.name).parent.name
            if name not in classes:
                classes.append(name)
            # Four of each class.
            if labels.count(classes.index(name)) < 4:
                opened = tar.extractfile(member)
                assert opened is not None
                pixels.append(np.asarray(image.open(io.BytesIO(opened.read())).convert("RGB")))
                labels.append(classes.index(name))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    split = Dataset("cifar10", images, torch.tensor(labels), tuple(sorted(classes)))
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    REDUCIBLE["cifar10"](folder, {"train": split, "test": split})
    out = tmp_path / "table2.json"
    report, printed = table2(warm, out, "--methods", "st", "--data-dir", tmp_path / "data", "--images", "4")
    assert report["data"] == "CIFAR-10, other bytes than the published"
    assert report["rows"]["st"]["natural.n"]["paper"] == pytest.approx(0.942)
    assert 0 <= report["rows"]["st"]["natural.n"]["ours"] <= 1
    assert report["epochs_of_the_paper"] == 105
    assert "Table 2: PreAct-ResNet18 on CIFAR-10" in printed


def test_without_images_it_says_so(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"preset": "cifar10-prn18-at", "epoch_seconds": 1.5}
    monkeypatch.setattr(program, "measured", lambda *arguments: row)
    out = tmp_path / "table2.json"
    missing = tmp_path / "none"
    argv = ["table2.py", "--device", "cpu", "--data-dir", str(missing), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    assert program.main() == 0
    assert "no run: " in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["rows"] == {}
    assert set(report["not_run"]) == {"aatpp", "aat", "at", "st"}
    assert report["timed"]["at"] == row
    assert str(missing) not in out.read_text()


def test_archives_are_unpacked_once(program: ModuleType, tmp_path: Path) -> None:
    packed, work = tmp_path / "packed", tmp_path / "work"
    packed.mkdir()
    (packed / "unpack.py").write_text("raise SystemExit('no archive here')")
    config = program.PRESETS["cifar10-prn18-at"]
    folder, reason = program.images(config, packed, work)
    assert folder is None
    assert "no archive here" in reason
    assert str(tmp_path) not in reason
    # What was written last is there: nothing runs, and the loader has the word.
    done = work / "data" / "cifar-10-batches-py"
    done.mkdir(parents=True)
    (done / "batches.meta").touch()
    folder, reason = program.images(config, packed, work)
    assert folder is None
    assert "no archive here" not in reason


def test_as_many_epochs_as_fit(program: ModuleType) -> None:
    timed = {
        method: {"preset": f"cifar10-prn18-{method}", "epoch_seconds": seconds}
        for method, seconds in (("aatpp", 10.0), ("st", 1.0))
    }
    attacks = ITEMS["aat-table2"].evaluation(Scale("shortened", False, 1.0, None)).attacks
    plain = program.schedule(timed, 1, 110.0, (), 0)
    assert plain == 10
    # The evaluation takes its share, two seeds twice of everything.
    evaluated = program.schedule(timed, 1, 110.0, attacks, 10_000)
    assert 1 <= evaluated < plain
    assert program.schedule(timed, 2, 220.0, attacks, 10_000) == evaluated
    assert program.schedule(timed, 1, 0.0, attacks, 10_000) == 1
    assert program.schedule(timed, 1, 1e9, attacks, 10_000) == 105


def test_a_call_without_time_leaves_runs_to_the_next(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With runs that cost nothing and evaluations that find nothing; the test above makes real ones."""
    slow = {"preset": "digits-at", "epoch_seconds": 1e6}
    monkeypatch.setattr(program, "measured", lambda preset, *rest: slow | {"preset": preset})
    trained: list[str] = []
    done: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(program, "fit", lambda config: trained.append(config.out.name))
    monkeypatch.setattr(program, "finished_epochs", lambda run: None)
    monkeypatch.setattr(program, "row", lambda run: {})
    monkeypatch.setattr(program.AATEvaluation, "finished", lambda _, run, plan: done.get(run.method))
    monkeypatch.setattr(
        program.AATEvaluation,
        "make",
        lambda _, run, plan, console: done.setdefault(run.method, {"of": run.method}),
    )
    column = (Column("natural.r", "natural", "R"),)

    def result(_: Any, plan: Any, documents: dict[str, Any], folder: Path) -> Any:
        rows = {method: (Cell(0.5 if method in documents else None, 0.9),) for method in ("at", "st")}
        return SimpleNamespace(comparison=Comparison("t", column, rows))

    monkeypatch.setattr(type(ITEMS["aat-table2"]), "result", result)
    out = tmp_path / "table2.json"
    argv = ["table2.py", "--device", "cpu", "--family", "digits", "--minutes", "0", "--methods", "st", "at"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(out)])
    assert program.main() == 0
    report = json.loads(out.read_text())
    assert trained == ["st-seed0"]
    assert set(report["rows"]) == {"st"}
    assert set(report["not_run"]) == {"at-seed0"}
    assert "the same command goes on" in capsys.readouterr().out
    # The next call has the schedule of the first, and the row that is missing.
    monkeypatch.setattr(program, "measured", lambda *arguments: pytest.fail("measured again"))
    assert program.main() == 0
    report = json.loads(out.read_text())
    assert trained == ["st-seed0", "at-seed0"]
    assert set(report["rows"]) == {"st", "at"}
    assert report["not_run"] == {}
    assert report["epochs"] == 1


def test_seeds_are_averaged(program: ModuleType) -> None:
    columns = (Column("natural.r", "natural", "R"), Column("natural.n", "natural", "N"))

    def one(ours: float) -> Comparison:
        return Comparison(
            "t", columns, {"at": (Cell(ours, 0.9), Cell(None, None)), "pi": (Cell(None, 0.8),) * 2}
        )

    comparison, rows = program.merged([one(0.5), one(0.75)], "cifar10-prn18")
    assert set(rows) == {"at"}
    assert rows["at"]["natural.r"] == {
        "ours": 0.625,
        "paper": 0.9,
        "difference": pytest.approx(-0.275),
        "sd": pytest.approx(0.1767767),
        "seeds": [0.5, 0.75],
    }
    assert comparison.rows["at"][0].ours == 0.625
    assert comparison.rows["pi"][0].paper == 0.8
