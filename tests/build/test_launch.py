"""Launch parameters: each at one place, every setting that bench/tune.py tries gives right results, and what was
measured is what the sources have."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tune

from robustfast.ops import backends

MEASURED = sorted(tune.RESULTS.glob("*.json"))


def test_every_parameter_has_one_place_and_a_plain_number() -> None:
    sources = [path.read_text() for path in sorted((tune.ROOT / "csrc").glob("*.cu"))]
    calls = [name for text in sources for name in re.findall(r'launch_setting\(\s*"(\w+)"', text)]
    plain = [name for text in sources for name in re.findall(r'launch_setting\(\s*"(\w+)",\s*\d+\)', text)]
    assert calls == plain
    assert len(set(calls)) == len(calls) > 0


@pytest.mark.parametrize("sweep", tune.SWEEPS, ids=lambda sweep: sweep.label)
def test_what_is_tried_is_a_parameter_and_todays_value_is_tried(sweep: tune.Sweep) -> None:
    here = tune.constants(sweep.op, sweep.backend)
    for name, values in sweep.tried.items():
        assert here[name] in values, f"{name} is {here[name]}, tried are {values}"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_the_sources_have_what_was_measured_best(path: Path) -> None:
    assert tune.outdated(json.loads(path.read_text())) == []


def document(now: float, other: float) -> dict[str, Any]:
    """A result in which today's setting and another one took so long."""
    here = tune.constants("pgd_step", "triton")
    settings = [
        {"values": {"linf_block": here["linf_block"], "linf_warps": warps}, "seconds": {"case": seconds}}
        for warps, seconds in ((here["linf_warps"], now), (2 * here["linf_warps"], other))
    ]
    for row, score in zip(settings, tune.scores(settings), strict=True):
        row["score"] = score
    best = min(settings, key=lambda row: row["score"])["values"]
    parameters = ["linf_block", "linf_warps"]
    sweep = {
        "op": "pgd_step",
        "backend": "triton",
        "parameters": parameters,
        "settings": settings,
        "best": best,
    }
    return {"sweeps": [sweep]}


def test_a_faster_setting_makes_the_sources_outdated_and_noise_does_not() -> None:
    assert tune.outdated(document(now=1.0, other=1.2)) == []
    assert tune.outdated(document(now=1.02, other=1.0)) == []
    (line,) = tune.outdated(document(now=1.1, other=1.0))
    assert re.match(r"pgd_step on triton: the sources have \{'linf_block': \d+, .*best is \{", line)


def test_scores_weigh_cases_alike_however_long_they_take() -> None:
    rows = [{"seconds": {"short": 1e-6, "long": 2.0}}, {"seconds": {"short": 2e-6, "long": 1.0}}]
    assert tune.scores(rows) == pytest.approx([2**0.5, 2**0.5])
    assert tune.scores([]) == []


def test_a_wrong_setting_is_never_best(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tune.Sweep("pgd_step", "triton", {"linf_block": (1, 2, 3)}, ("linf-32",))
    monkeypatch.setattr(
        tune, "checked", lambda sweep, values, cases: "wrong" if values["linf_block"] == 2 else None
    )
    monkeypatch.setattr(tune, "launched_with", lambda sweep, values: tune.use_backend("reference"))
    taken = iter([3.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr(tune, "seconds_of", lambda call, device, seconds: next(taken))
    found = tune.run(sweep, tune.torch.device("cpu"), 0.0)
    assert [row.get("wrong") for row in found["settings"]] == [None, "wrong", None]
    # Forwards 3 and 1, backwards 1 and 3: the second reading of the last setting comes first.
    assert [row["seconds"]["linf-32"] for row in found["settings"] if "seconds" in row] == [3.0, 1.0]
    assert found["best"] == {"linf_block": 3}


@pytest.mark.skipif(
    bool(backends()["pgd_step"]["triton"]) or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs Triton's interpreter",
)
def test_tuning_interpreted_checks_every_setting_of_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROBUSTFAST_LAUNCH", "")
    options = ["--device", "cpu", "--ops", "pgd_step", "--seconds", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tune.py", *options])
    # Of each parameter the ends, on one case: an interpreted setting takes a second.
    ends = [
        replace(sweep, tried={name: values[:: len(values) - 1] for name, values in sweep.tried.items()})
        for sweep in tune.SWEEPS
    ]
    monkeypatch.setattr(tune, "SWEEPS", [replace(sweep, cases=sweep.cases[:1]) for sweep in ends])
    before = tune.constants("pgd_step", "triton")
    assert tune.main() == 0
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert result["not_run"] == {}
    assert [sweep["backend"] for sweep in result["sweeps"]] == ["triton"] * 3
    for sweep in result["sweeps"]:
        assert [row.get("wrong") for row in sweep["settings"]] == [None] * len(sweep["settings"])
        assert sweep["best"] in [row["values"] for row in sweep["settings"]]
    assert before == importlib.import_module("robustfast.kernels.pgd_step").LAUNCH
