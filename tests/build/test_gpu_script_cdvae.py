"""The stage that trains CD-VAE, really made: on the digits, one epoch of each run, on the CPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from warm import Warm

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--device", "cpu", "--minutes", "0", "--images", "64", "--steps", "1"]


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """bench/cdvae.py; pytest finds what is in bench/."""
    return importlib.import_module("cdvae")


def test_it_trains_as_far_as_the_time_goes_and_shows_the_table(warm: Warm, tmp_path: Path) -> None:
    out = tmp_path / "cdvae.json"
    done = warm.run("bench/cdvae.py", *TINY, "--family", "digits", "--out", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert set(report["timed"]) == set(report["runs"]) == {"cdvae", "cdvae-x"}
    for method, run in report["runs"].items():
        # No time at all is still one epoch.
        assert (run["epochs"], len(run["epoch_seconds"])) == (1, 1)
        assert run["epoch_seconds"][0] > 0
        assert report["timed"][method]["steps_in_epoch"] == 12
    assert report["images"] == 64
    assert set(report["parts"]) == {"reconstruction", "norms", "detection"}
    assert "kd r" in report["detection"]["rows"] or report["detection"]["rows"] == {}
    assert all(cell["paper"] is None for row in report["detection"]["rows"].values() for cell in row.values())
    assert {"device", "torch", "commit"} <= set(report["hardware"])
    assert str(ROOT) not in out.read_text()
    assert "epoch 1/1" in done.stdout


def test_without_the_data_steps_are_timed_alone(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"preset": "cifar10-cdvae", "epoch_seconds": 1.5}
    monkeypatch.setattr(program, "measured", lambda *arguments: row)
    out = tmp_path / "cdvae.json"
    argv = ["cdvae.py", *TINY, "--data-dir", str(tmp_path / "none"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    assert program.main() == 0
    assert "no run: " in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["timed"]["cdvae"] == row
    assert "runs" not in report
    assert "cifar10" in report["data"]


def test_as_many_epochs_as_fit(program: ModuleType) -> None:
    assert program.epochs_in(100, 10, 300) == 10
    assert program.epochs_in(5, 10, 300) == 1
    assert program.epochs_in(1e6, 10, 300) == 300


def test_ours_stand_beside_the_papers(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    known = {
        attack: {
            detector: {part: {"tnr": 0.5, "auroc": 0.75} for part in "xr"} for detector in ("kd", "lid", "md")
        }
        for attack in ("fgsm", "bim", "cw", "pgd-linf", "pgd-l2")
    }
    document = {"parts": {"detection": {"numbers": {"known": known}}}}
    rows = program.detection(document, "cifar10", program.Console(width=200))["rows"]
    assert rows["kd r"]["fgsm.tnr"] == {
        "ours": 0.5,
        "paper": pytest.approx(0.5710),
        "difference": pytest.approx(-0.071),
    }
    assert "42.38" in capsys.readouterr().out
    assert all(
        cell["paper"] is None
        for row in program.detection(document, "digits", program.Console(quiet=True))["rows"].values()
        for cell in row.values()
    )
