"""The benches of precision as a stage runs them: what a verdict reads of their files, and what lacks its images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import precision_gradients
import precision_seeds
import pytest

from robustfast.training.presets import PRESETS


def test_gradients_of_each_case_and_the_largest_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, missing = tmp_path / "precision-gradients.json", tmp_path / "none"
    argv = ["precision_gradients.py", "--cases", "digits_cnn, AT", "preact_resnet18, AT, batch 128"]
    argv += ["--stops", "0", "--data-dir", str(missing), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    precision_gradients.main()
    assert "not run" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert [row["steps"] for row in report["rows"]] == [0]
    assert set(report["configs"]) == {"digits_cnn, AT"}
    assert report["configs"]["digits_cnn, AT"]["fold"] == "off"
    assert set(report["not_run"]) == {"preact_resnet18, AT, batch 128"}
    assert str(missing) not in out.read_text()
    within = {name: errors["pass"] < 0.2 for name, errors in report["largest"].items()}
    assert report["within"] == within
    assert set(within) == set(precision_gradients.VARIANTS)
    # In half precision there is an error to be found, folded or not; in float32 there is rounding.
    assert report["largest"]["bf16 channels-last"]["pass"] > 1e-4
    assert report["largest"]["bf16 channels-last, folded"]["step"] > 1e-4
    assert report["largest"]["fp32 channels-last"]["pass"] < 1e-4


def test_the_largest_errors_are_those_of_all_rows() -> None:
    rows = [
        {
            kind: dict.fromkeys(precision_gradients.VARIANTS, value + (kind == "pass"))
            for kind in ("step", "pass")
        }
        for value in (0.1, 0.3, 0.2)
    ]
    found = precision_gradients.largest(rows)
    assert found["bf16 channels-last"] == {"step": 0.3, "pass": 1.3}
    assert set(found) == set(precision_gradients.VARIANTS)


def test_cases_of_a_gpu_are_of_presets() -> None:
    for preset, fields, stops in precision_gradients.GPU_CASES.values():
        assert set(fields) <= set(vars(PRESETS[preset]))
        assert list(stops) == sorted(stops)


@pytest.mark.parametrize(("shift", "agree"), [(0.0, True), (0.2, False)])
def test_ranges_over_seeds(
    shift: float, agree: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(
        folder: Path, seed: int, fields: dict[str, object], epochs: int | None, device: str
    ) -> dict[str, float]:
        assert device == "cpu"
        folder.mkdir(parents=True)
        stored = {"robustfast": "0", "commit": "0", "hardware": {}, "config": {"seed": seed}}
        (folder / "config.json").write_text(json.dumps(stored))
        return dict.fromkeys(precision_seeds.NUMBERS, 0.5 + 0.01 * seed + (shift if fields else 0.0))

    monkeypatch.setattr(precision_seeds, "run", run)
    out = tmp_path / "new" / "precision-digits.json"
    argv = ["precision_seeds.py", "--work", str(tmp_path / "work"), "--out", str(out), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    precision_seeds.main()
    report = json.loads(out.read_text())
    assert report["robust_overlap"] is agree
    assert set(report["overlap"].values()) == {agree}
    assert [row["seed"] for row in report["accuracy"]["fp32"]] == [0, 1, 2]


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from robustfast.errors import UserError

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for program in (precision_gradients, precision_seeds):
        monkeypatch.setattr(sys, "argv", ["bench.py", "--device", "cuda", "--out", str(tmp_path / "x.json")])
        with pytest.raises(UserError, match="cuda"):
            program.main()
