"""AFD's table A3: images made on each of several runs, judged by one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from robustfast.attacks import PGDFoolbox
from robustfast.errors import UserError
from robustfast.evaluation import afd
from robustfast.evaluation.afd import grids
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.subject import run_subject
from robustfast.training.run_folder import load_run

IMAGES, EPS = 24, 0.1
STEPS = {"steps": 4, "relative_step": 0.3}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    named, _ = grids.NOMINAL["digits"]["pgd"]
    quick = replace(named, settings={**named.settings, **STEPS})
    monkeypatch.setattr(grids, "NOMINAL", {"digits": {"pgd": (quick, EPS)}})


def evaluate(run: Path, *against: str) -> tuple[dict[str, float], str]:
    console = Console(file=io.StringIO(), width=200)
    request = Request(parts=("transfer",), images=IMAGES, device="cpu", against=against)
    document = evaluate_parts(run, "afd", afd.PARTS, request, console=console)
    return document["parts"]["transfer"]["numbers"], console.file.getvalue()


def test_each_run_makes_images_for_this_one(runs: dict[str, Path]) -> None:
    numbers, said = evaluate(runs["at"], f"NT={runs['nt']}", f"itself={runs['at']}")
    subject = run_subject(runs["at"], images=IMAGES, device="cpu")
    ((x, y, *_),) = subject.source.batches(0)
    index = torch.arange(IMAGES) * subject.images_in_split // IMAGES
    judge = load_run(runs["at"], device="cpu").model
    assert list(numbers) == ["NT", "itself"]
    for label, name in (("NT", "nt"), ("itself", "at")):
        source = load_run(runs[name], device="cpu").model
        x_adv = PGDFoolbox(source, EPS, **STEPS)(x, y, index)
        with torch.no_grad():
            right = (judge(x).argmax(1) == y) & (judge(x_adv).argmax(1) == y)
        assert numbers[label] == pytest.approx(right.double().mean().item())
        assert f"{100 * numbers[label]:.2f}" in said
    assert numbers["itself"] < numbers["NT"]


def test_runs_of_other_images_are_refused(runs: dict[str, Path]) -> None:
    config = runs["nt"] / "config.json"
    config.write_text(config.read_text().replace('"dataset": "digits"', '"dataset": "mnist"'))
    with pytest.raises(UserError, match="--against NT: trained on mnist, this run on digits"):
        evaluate(runs["at"], f"NT={runs['nt']}")
