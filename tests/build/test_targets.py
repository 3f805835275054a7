"""The verdict of `make gpu`: what was asked for against files as the stages write them, whole, in part and broken."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import targets

ROOT = Path(__file__).resolve().parents[2]
PASSED = {
    "test": {
        "commands": [
            {
                "command": "python -m pytest -q tests -m gpu --numprocesses auto",
                "state": "passed",
                "counts": {"passed": 35},
            },
            {
                "command": "python -m pytest -q tests -m not gpu --numprocesses auto",
                "state": "passed",
                "counts": {"passed": 4000, "skipped": 12},
            },
        ]
    }
}


def bench(case: str, share: float, ratio: float, in_graph: float | None = None) -> dict[str, Any]:
    info: dict[str, Any] = {"op": "pgd_step", "case": case, "seconds": {"cuda": {"median": 1.0}}}
    info |= {"ratio": {"compiled": ratio, "cuda": 1.0}, "share_of_copy": share}
    return info if in_graph is None else info | {"in_graph_seconds": in_graph}


def step(method: str, batch: int, people: float, reference: float, launched: float) -> dict[str, Any]:
    medians = {"people": people, "reference": reference, "without whole-step": launched, "ours": 1e-3}
    return {
        "model": "preact_resnet18",
        "method": method,
        "batch": batch,
        "seconds": {
            name: {"median": ratio * 1e-3 if name != "ours" else ratio} for name, ratio in medians.items()
        },
        "share_of_matrix_peak": 0.45,
    }


def good() -> dict[str, Any]:
    """What a run that met everything wrote, file by file."""
    state = {"op": "pgd_step", "state": "clean"}
    tools = {tool: {"skipped": None, "planted": None} for tool in ("memcheck", "racecheck", "initcheck")}
    return {
        "ops": [
            bench("256x3x224x224-linf", 0.9, 1.5),
            bench("256x3x224x224-l2", 0.8, 1.3),
            bench("128x3x32x32-linf", 0.3, 2.0, 2.5e-6),
        ],
        "ablation.json": {
            "cases": [step(m, b, 5.5, 1.9, 1.6) for m in ("at", "aat", "aatpp") for b in (128, 512)],
        },
        "epoch.json": {"best": {"seconds": 4.2}},
        "epoch-wrn.json": {"best": {"seconds": 50}},
        "sanitize.json": {"tools": tools, "runs": [state | {"tool": tool} for tool in tools]},
        "table2.json": {
            "rows": {m: {"natural": {"ours": 0.8}} for m in ("aatpp", "aat", "at", "st")},
            "data": "CIFAR-10 (JPEG)",
            "epochs": 15,
            "not_run": {},
        },
        "precision-gradients.json": {
            "rows": [{"case": "small_cnn, AT", "steps": 0, "pass": {"bf16 channels-last": 0.06}}]
        },
        "precision-digits.json": {
            "overlap": {"adversarial.r": True},
            "summary": {name: {"adversarial.r": {"mean": 0.88, "sd": 0.004}} for name in ("fp32", "bf16")},
        },
    }


def written(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        if name == "ops":
            stored = folder / "ops" / "Linux-CPython-3.12-64bit"
            stored.mkdir(parents=True)
            benches = [{"name": "b", "extra_info": info} for info in content]
            (stored / "0001_run.json").write_text(json.dumps({"benchmarks": benches}))
        else:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def judged(folder: Path, files: dict[str, Any], stages: dict[str, Any] = PASSED) -> dict[str, dict[str, str]]:
    rows = targets.verdicts(targets.collect(written(folder, files)), stages)
    assert all(set(row) == {"demand", "wanted", "found", "verdict"} for row in rows)
    return {row["demand"]: row for row in rows}


def one(rows: dict[str, dict[str, str]], start: str) -> tuple[str, str]:
    """Verdict and what was found of the row whose demand begins so."""
    (row,) = (row for demand, row in rows.items() if demand.startswith(start))
    return row["verdict"], row["found"]


def test_a_run_that_met_everything(tmp_path: Path) -> None:
    rows = judged(tmp_path, good())
    assert len(rows) == 18
    assert {row["verdict"] for row in rows.values()} == {"met"}
    assert one(rows, "pgd_step linf 128x3x32x32") == ("met", "2.50 us")
    assert one(rows, "AT step, PreAct") == ("met", "5.50x")
    assert one(rows, "compute-sanitizer") == ("met", "3 clean")
    assert one(rows, "tests that need a GPU") == ("met", "35 passed")


def test_an_empty_folder_measures_nothing(tmp_path: Path) -> None:
    rows = judged(tmp_path, {}, {})
    assert {row["verdict"] for row in rows.values()} == {"not measured"}
    assert one(rows, "epoch of PGD-10 AT, WRN") == ("not measured", "no epoch-wrn.json")
    assert one(rows, "tests that need") == ("not measured", "stage test did not run")


MISSED = [
    ("pgd_step linf 256", lambda f: f["ops"][0].update(share_of_copy=0.84), "84.0 %"),
    ("pgd_step l2 256", lambda f: f["ops"][1].update(share_of_copy=0.7499), "75.0 %"),
    ("pgd_step linf 128", lambda f: f["ops"][2].update(in_graph_seconds=3.1e-6), "3.10 us"),
    ("pgd_step 256", lambda f: f["ops"][1]["ratio"].update(compiled=1.1), "1.10x"),
    ("AT step, PreAct", lambda f: f["ablation.json"]["cases"][0].update(ratio={"people": 4.9}), "4.90x"),
    ("AT step, against", lambda f: f["ablation.json"]["cases"][0].update(ratio={"reference": 1.5}), "1.50x"),
    ("AAT step", lambda f: f["ablation.json"]["cases"][2].update(ratio={"reference": 1.7}), "1.70x"),
    ("AAT++ step", lambda f: f["ablation.json"]["cases"][4].update(ratio={"reference": 1.6}), "1.60x"),
    (
        "AT step as one",
        lambda f: f["ablation.json"]["cases"][0].update(ratio={"without whole-step": 1.2}),
        "1.20x",
    ),
    ("AT step at batch", lambda f: f["ablation.json"]["cases"][1].update(share_of_matrix_peak=0.3), "30.0 %"),
    ("epoch of PGD-10 AT, PreAct", lambda f: f["epoch.json"]["best"].update(seconds=4.6), "4.60 s"),
    ("epoch of PGD-10 AT, WRN", lambda f: f["epoch-wrn.json"]["best"].update(seconds=56), "56.00 s"),
    (
        "error of one bf16",
        lambda f: f["precision-gradients.json"]["rows"][0]["pass"].update({"bf16 channels-last": 0.2}),
        "0.200 (small_cnn, AT after 0 steps)",
    ),
    (
        "robust accuracy",
        lambda f: f["precision-digits.json"]["overlap"].update({"adversarial.r": False}),
        None,
    ),
    (
        "compute-sanitizer",
        lambda f: f["sanitize.json"]["runs"][0].update(state="errors"),
        "1 errors, 2 clean: memcheck pgd_step",
    ),
]


@pytest.mark.parametrize(("demand", "spoil", "found"), MISSED, ids=[case[0] for case in MISSED])
def test_a_target_that_is_missed(demand: str, spoil: Any, found: str | None, tmp_path: Path) -> None:
    files = good()
    spoil(files)
    rows = judged(tmp_path, files)
    verdict, told = one(rows, demand)
    assert verdict == "missed"
    assert found in (None, told)
    assert sum(row["verdict"] == "met" for row in rows.values()) == 17


ABSENT = [
    (
        "AT step, PreAct",
        lambda f: f["ablation.json"]["cases"][0]["seconds"].pop("people"),
        "people: not measured",
    ),
    (
        "AT step as one",
        lambda f: f["ablation.json"]["cases"][0].update(
            seconds={"ours": {"median": 1}}, not_run={"without whole-step": "no graphs"}
        ),
        "without whole-step: no graphs",
    ),
    ("AAT step", lambda f: f["ablation.json"]["cases"].pop(2), "has no preact_resnet18 aat at batch 128"),
    (
        "pgd_step linf 128",
        lambda f: f["ops"][2].pop("in_graph_seconds"),
        "not in the form expected: KeyError",
    ),
    ("pgd_step linf 128", lambda f: f["ops"].pop(2), "no bench of pgd_step 128x3x32x32-linf"),
    ("pgd_step l2", lambda f: f["ops"][1].update(share_of_copy=float("nan")), "nan is no number"),
    ("epoch of PGD-10 AT, PreAct", lambda f: f["epoch.json"].update(best=None), "no cell was measured"),
    ("epoch of PGD-10 AT, WRN", lambda f: f.update({"epoch-wrn.json": '{"best": '}), "cannot be read"),
    ("epoch of PGD-10 AT, WRN", lambda f: f.update({"epoch-wrn.json": "[]"}), "not in the form expected"),
    ("AAT's table 2", lambda f: f["table2.json"]["rows"].pop("st"), "no row of st"),
    (
        "AAT's table 2",
        lambda f: f["table2.json"].update(rows={}, not_run={"at": "no images"}),
        "no row of aatpp, aat, at, st; no images",
    ),
    (
        "compute-sanitizer",
        lambda f: f["sanitize.json"].update(runs=[], tools={"memcheck": {"skipped": "Device not supported"}}),
        "Device not supported",
    ),
    (
        "compute-sanitizer",
        lambda f: f["sanitize.json"]["tools"]["racecheck"].update(planted="the planted fault was not found"),
        "the planted fault was not found; 3 clean",
    ),
    ("compute-sanitizer", lambda f: f["sanitize.json"]["runs"].pop(), "nothing ran under initcheck; 2 clean"),
    (
        "compute-sanitizer",
        lambda f: f["sanitize.json"]["runs"][2].update(state="timed out"),
        "2 clean, 1 timed out",
    ),
    ("error of one bf16", lambda f: f["precision-gradients.json"].update(rows=[]), "has no rows"),
]


@pytest.mark.parametrize(("demand", "spoil", "why"), ABSENT, ids=range(len(ABSENT)))
def test_what_is_absent_or_broken_is_not_measured(demand: str, spoil: Any, why: str, tmp_path: Path) -> None:
    files = good()
    spoil(files)
    rows = judged(tmp_path, files)
    verdict, found = one(rows, demand)
    assert verdict == "not measured"
    assert why in found
    assert not [row for row in rows.values() if row["verdict"] == "missed"]


@pytest.mark.parametrize(("tool", "verdict"), [("synccheck", "met"), ("racecheck", "not measured")])
def test_only_the_tools_that_are_asked_for_must_have_ended(tool: str, verdict: str, tmp_path: Path) -> None:
    files = good()
    files["sanitize.json"]["runs"].append({"tool": tool, "op": "augment", "state": "timed out"})
    rows = judged(tmp_path, files)
    assert one(rows, "compute-sanitizer") == (verdict, "3 clean, 1 timed out")


def test_speeds_measured_by_turns_count_before_medians(tmp_path: Path) -> None:
    files = good()
    files["ablation.json"]["cases"][0]["ratio"] = {"people": 6.25}
    assert one(judged(tmp_path, files), "AT step, PreAct") == ("met", "6.25x")


@pytest.mark.parametrize(
    ("state", "counted", "verdict"),
    [
        ("failed", {"failed": 1, "passed": 34}, "missed"),
        ("failed", {}, "missed"),
        ("cut short", {"passed": 20}, "not measured"),
        ("cut short", {"passed": 20, "failed": 2}, "missed"),
        ("passed", {"skipped": 35}, "not measured"),
        ("passed", {"passed": 35, "error": 1}, "missed"),
    ],
)
def test_tests_must_all_have_run(state: str, counted: dict[str, int], verdict: str, tmp_path: Path) -> None:
    marked = PASSED["test"]["commands"][0] | {"state": state, "counts": counted}
    stages = {"test": {"commands": [marked, PASSED["test"]["commands"][1]]}}
    rows = judged(tmp_path, good(), stages)
    assert one(rows, "tests that need a GPU")[0] == verdict
    assert one(rows, "all other tests")[0] == "met"


def test_the_newest_run_of_a_bench_counts(tmp_path: Path) -> None:
    files = good()
    written(tmp_path, files)
    newer = tmp_path / "ops" / "Linux-CPython-3.12-64bit" / "0002_run.json"
    newer.write_text(json.dumps({"benchmarks": [{"extra_info": bench("256x3x224x224-linf", 0.5, 1.5)}]}))
    # A file that a killed process left in pieces takes nothing away.
    (newer.parent / "0003_run.json").write_text('{"benchmarks": [{"extra')
    rows = targets.verdicts(targets.collect(tmp_path), PASSED)
    assert one({row["demand"]: row for row in rows}, "pgd_step linf 256") == ("missed", "50.0 %")


def test_the_table_is_short_and_names_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, good() | {"epoch.json": {"best": {"seconds": 9.0}}})
    report = {"hardware": {"device": "NVIDIA H200"}, "stages": {}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["targets.py", str(tmp_path)])
    assert targets.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "targets, on NVIDIA H200"
    assert lines[-1] == "15 met, 1 missed, 2 not measured"
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 180
    monkeypatch.setattr(sys, "argv", ["targets.py", str(tmp_path / "none")])
    assert targets.main() == 2
    assert "is no folder" in capsys.readouterr().err


def test_another_device_is_said() -> None:
    assert "they are meant for an H200" in targets.table([], {"device": "NVIDIA A100"})


READ = {
    "bench_pgd_step.py": (targets.LARGE, targets.SMALL, "linf", "l2", "in_graph_seconds", "compiled"),
    "conftest.py": ("op", "case", "seconds", "ratio", "share_of_copy"),
    "ablation.py": (
        "cases",
        "model",
        "method",
        "batch",
        "seconds",
        "ratio",
        "not_run",
        "share_of_matrix_peak",
    ),
    "epoch.py": ("best",),
    "sanitize.py": (),
    "table2.py": ("rows", "data", "epochs", "not_run", "aatpp", "aat", "at", "st"),
    "precision_gradients.py": ("rows", "case", "steps", "pass", "bf16 channels-last"),
    "precision_seeds.py": ("overlap", "summary", "mean", "sd", "adversarial.r"),
}


@pytest.mark.parametrize("program", READ)
def test_the_programs_write_what_is_read(program: str) -> None:
    """A key that is renamed there would make a target "not measured" without a word here."""
    source = (ROOT / "bench" / program).read_text()
    for key in READ[program]:
        assert re.search(rf"[\"']{re.escape(key)}[\"']|\b{re.escape(key)}=", source), key
    if program == "ablation.py":
        assert all(
            f'"{variant}"' in source for variant in ("people", "reference", "ours", "without whole-step")
        )


def test_committed_results_of_precision_are_read(tmp_path: Path) -> None:
    for name in ("precision-gradients.json", "precision-digits.json"):
        shutil.copy(ROOT / "bench" / "results" / name, tmp_path)
    rows = targets.verdicts(targets.collect(tmp_path), {})
    told = {row["demand"]: row["verdict"] for row in rows}
    assert told["robust accuracy of bf16 and float32 over seeds"] == "met"
    assert told["error of one bf16 gradient, the largest"] in ("met", "missed")
