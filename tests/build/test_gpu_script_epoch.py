"""The table of epoch times, really made: few images and a small network, on the CPU."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import epoch
import pytest
from epoch import PEOPLE, Cell, Outcome
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--device",
    "cpu",
    "--model",
    "wide_resnet10_1",
    "--images",
    "20",
    "--batch-size",
    "8",
    "--steps",
    "1",
]
TINY += ["--rounds", "1", "--warm-up", "1", "--workers", "0"]


def epochs(warm: Warm, out: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = warm.run("bench/epoch.py", *TINY, "--out", out, *arguments, cwd=ROOT)
    assert done.returncode == code, done.stderr
    report = json.loads(out.read_text()) if out.exists() else {}
    report["printed"] = done.stdout
    report["errors"] = done.stderr
    return report


@pytest.fixture(scope="module")
def report(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("epoch") / "table.json"
    return epochs(warm, out, "--engines", "plain", "eager", "graph", "whole")


def cell(report: dict[str, Any], *names: str) -> dict[str, Any]:
    keys = "loader", "engine", "precision", "layout"
    return next(cell for cell in report["cells"] if tuple(cell[key] for key in keys) == names)


def test_every_cell_of_the_grid_is_there(report: dict[str, Any]) -> None:
    likely, people, *rest, again = report["cells"]
    assert people["engine"] == again["engine"] == "people"
    assert (likely["loader"], likely["engine"], likely["precision"]) == ("resident", "whole", "bf16")
    ours = [likely, *rest]
    grid = {(c["loader"], c["engine"], c["precision"], c["layout"]) for c in ours}
    assert len(ours) == len(grid) == 2 * 4 * 2 * 2
    assert all(c["fold"] == ("-" if c["engine"] == "plain" else "on") for c in ours)


def test_measured_cells_cover_the_epoch(report: dict[str, Any]) -> None:
    measured = [c for c in report["cells"] if c["state"] == "measured"]
    assert {c["engine"] for c in measured} == {"people", "plain", "eager"}
    for found in measured:
        assert found["steps"] == [3]  # two of eight images and one of four
        assert found["steps_in_epoch"] == 3
        assert found["rounds"] == [found["seconds"]]
        assert found["setup_seconds"] > 0
        assert found["images_per_second"] == pytest.approx(20 / found["seconds"])


def test_what_cannot_run_keeps_its_reason(report: dict[str, Any]) -> None:
    graph = cell(report, "resident", "graph", "fp32", "contiguous")
    assert graph["state"] == "failed"
    assert "needs images on a CUDA device" in graph["reason"]
    assert graph["seconds"] is None
    whole = cell(report, "resident", "whole", "bf16", "channels-last")  # DALI may be missing
    assert whole["state"] == "eager after all"
    assert "CUDA graphs need a GPU" in whole["reason"]


def test_the_report_says_what_was_measured_where_and_on_what(report: dict[str, Any]) -> None:
    assert report["what"].startswith("seconds per epoch of PGD-1 adversarial training")
    assert {"device", "torch", "commit", "threads"} <= set(report["hardware"])
    assert "random bytes" in report["data"]
    assert report["settings"]["batch_norm_in_the_attack"] == "eval"
    assert str(ROOT) not in json.dumps({k: v for k, v in report.items() if k not in ("printed", "errors")})


def test_equality_comes_first(report: dict[str, Any]) -> None:
    # float32 leaves 1e-7 here, and 0.16 after ten attack steps on PreAct-ResNet18: no measure of anything.
    assert 0 <= report["gradient_error"] < 1e-10


def test_the_table_is_printed(report: dict[str, Any]) -> None:
    printed = report["printed"]
    for word in ("people", "plain", "resident", "dali", "written to"):
        assert word in printed


def test_an_epoch_past_the_time_is_extrapolated_and_says_so(warm: Warm, tmp_path: Path) -> None:
    few = ["--engines", "eager", "--loaders", "resident", "--precisions", "fp32", "--layouts", "contiguous"]
    report = epochs(warm, tmp_path / "some.json", *few, "--seconds", "0", "--no-people")
    (found,) = report["cells"]
    assert found["steps"] == [1]
    assert found["steps_in_epoch"] == 3
    assert "~" in report["printed"]


def test_cells_past_the_limit_are_skipped(warm: Warm, tmp_path: Path) -> None:
    few = ["--engines", "eager", "--loaders", "resident", "--precisions", "fp32"]
    report = epochs(warm, tmp_path / "late.json", *few, "--limit", "-1", code=1)
    assert {c["state"] for c in report["cells"]} == {"skipped"}
    assert {c["reason"] for c in report["cells"]} == {"--limit -1 s"}


def test_a_folder_without_cifar_is_one_line(warm: Warm, tmp_path: Path) -> None:
    report = epochs(warm, tmp_path / "none.json", "--data-dir", str(tmp_path), code=2)
    assert report["errors"].startswith("error: ")
    assert len(report["errors"].splitlines()) == 1


def test_the_best_of_ours_is_named(report: dict[str, Any]) -> None:
    ours = [c for c in report["cells"] if c["engine"] == "eager" and c["state"] == "measured"]
    fastest = min(ours, key=lambda c: c["seconds"])
    assert report["best"]["seconds"] == fastest["seconds"]
    assert report["best"]["cell"] == {name: fastest[name] for name in report["best"]["cell"]}
    assert report["best"]["extrapolated"] is False


def test_neither_baselines_nor_what_gave_way_are_the_best() -> None:
    ours = Cell("resident", "graph", "bf16", "channels-last", "on")
    rows = [(PEOPLE, Outcome("measured", seconds=1.0)), (ours, Outcome("eager after all", "why"))]
    assert epoch.best(rows) is None
    rows += [
        (Cell("resident", "plain", "bf16", "channels-last"), Outcome("measured", seconds=2.0)),
        (ours, Outcome("measured", seconds=4.0, rounds=[3.0, 4.0, 5.0], steps=[7, 7], steps_in_epoch=9)),
        (ours, Outcome("measured", seconds=5.0, rounds=[5.0], steps=[9], steps_in_epoch=9)),
    ]
    found = epoch.best(rows)
    assert found is not None
    assert (found["seconds"], found["extrapolated"]) == (4.0, True)


def grid_of(model: str, **asked: Any) -> tuple[Namespace, list[Cell]]:
    nothing = dict.fromkeys(("loaders", "engines", "precisions", "layouts", "folds", "rounds"))
    options = Namespace(model=model, limit=10.0, people=True, **(nothing | asked))
    epoch.fill_in(options)
    return options, epoch.grid(options)


def test_of_a_large_network_what_fits_into_the_time_is_measured() -> None:
    options, cells = grid_of("wide_resnet34_10")
    assert options.rounds == 2
    likely, people, *rest, again = cells
    assert likely == Cell("resident", "whole", "bf16", "channels-last", "on")
    assert people == again == PEOPLE
    assert [cell.engine for cell in rest] == ["plain", "eager", "graph"]
    options, cells = grid_of("wide_resnet34_10", precisions=("fp32",), rounds=5)
    assert options.rounds == 5
    assert {cell.precision for cell in cells} == {"fp32"}
    options, cells = grid_of("preact_resnet18")
    assert options.rounds == 3
    assert len(cells) == 2 + 5 * 2 * 2 * 2


def test_folding_can_be_compared(warm: Warm, tmp_path: Path) -> None:
    few = ["--engines", "plain", "eager", "--loaders", "resident", "--precisions", "fp32", "--no-people"]
    report = epochs(warm, tmp_path / "folds.json", *few, "--layouts", "contiguous", "--folds", "on", "off")
    assert [(c["engine"], c["fold"]) for c in report["cells"]] == [
        ("plain", "-"),
        ("eager", "on"),
        ("eager", "off"),
    ]
    assert {c["state"] for c in report["cells"]} == {"measured"}


@pytest.mark.gpu
def test_on_a_gpu_the_likely_fastest_is_measured(warm: Warm, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    tiny = [part if part != "cpu" else "cuda" for part in TINY]
    few = ["--engines", "whole", "graph", "--loaders", "resident", "--precisions", "bf16"]
    done = warm.run("bench/epoch.py", *tiny, "--images", "96", "--warm-up", "6", *few, "--out", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {c["state"] for c in report["cells"]} == {"measured"}
    assert report["best"]["cell"]["engine"] in ("whole", "graph")
