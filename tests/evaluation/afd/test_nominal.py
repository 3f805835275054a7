"""AFD's table 1: the numbers are what the attacks give when they are called directly, white-box and on other images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from robustfast.attacks import AutoAttack, CarliniWagner, PGDFoolbox
from robustfast.errors import UserError
from robustfast.evaluation import afd
from robustfast.evaluation.afd import grids
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.subject import run_subject
from robustfast.training.run_folder import load_run

IMAGES, EPS, CW_EPS = 24, 0.15, 0.5
PGD = {"steps": 4, "relative_step": 0.3}
# Large steps: what it finds lies far out, and is pulled in.
CW = {"steps": 12, "step_size": 0.5, "search_steps": 2, "c": 1e-3}
AA = {"version": "custom", "attacks": ("apgd-ce", "square"), "steps": 3, "queries": 10}

Evaluate = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"pgd": PGD, "cw": CW, "aa": AA}
    quick = {
        name: (replace(named, settings={**named.settings, **few[name]}), eps)
        for name, (named, eps) in grids.NOMINAL["digits"].items()
    }
    monkeypatch.setattr(grids, "NOMINAL", {"digits": quick})


def evaluate(run: Path, *parts: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """The parts' numbers, and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    request = Request(parts=parts, images=IMAGES, device="cpu", **fields)
    document = evaluate_parts(run, "afd", afd.PARTS, request, console=console)
    return {name: part["numbers"] for name, part in document["parts"].items()}, console.file.getvalue()


def images(run: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The evaluated ones, their labels and positions."""
    subject = run_subject(run, images=IMAGES, device="cpu")
    ((x, y, *_),) = subject.source.batches(0)
    return x, y, torch.arange(IMAGES) * subject.images_in_split // IMAGES


def share(model: Callable[[Tensor], Tensor], x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    """Share of the images that are right before and after."""
    with torch.no_grad():
        return ((model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)).double().mean().item()


def pulled(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """As Foolbox does: shortened to eps where longer."""
    delta = x_adv - x
    length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    return x + delta * (eps / length).clamp(max=1)


def test_numbers_are_those_of_the_attacks_called_directly(runs: dict[str, Path]) -> None:
    found, said = evaluate(runs["at"], "nominal")
    model, (x, y, index) = load_run(runs["at"], device="cpu").model.way("r"), images(runs["at"])
    numbers = found["nominal"]
    assert numbers["clean"] == pytest.approx(share(model, x, x, y))
    assert numbers["clean"] > 0.3
    x_adv = PGDFoolbox(model, EPS, **PGD)(x, y, index)
    assert numbers["pgd"] == pytest.approx(share(model, x, x_adv, y))
    x_adv = AutoAttack(model, eps=EPS, flags=False, **AA)(x, y, index)
    assert numbers["aa"] == pytest.approx(share(model, x, x_adv, y))
    nearest = CarliniWagner(model, **CW)(x, y, index)
    assert numbers["cw"] == pytest.approx(share(model, x, pulled(nearest, x, CW_EPS), y))
    # Not the same as giving up what lies too far: here some of that fools also where it is pulled to.
    given_up = CarliniWagner(model, eps=CW_EPS, **CW)(x, y, index)
    assert numbers["cw"] < share(model, x, given_up, y)
    for name, settings in (("pgd", PGD), ("cw", CW)):
        record = numbers["attacks"][name]
        assert {key: record[key] for key in settings} == settings
        assert record["images"] == IMAGES
    assert [numbers["attacks"][name]["eps"] for name in ("pgd", "cw", "aa")] == [[EPS], [CW_EPS], [EPS]]
    assert f"{100 * numbers['pgd']:.2f}" in said
    samples = json.loads((runs["at"] / "evaluation" / "afd-custom-nominal.json").read_text())["per_sample"]
    assert samples["index"] == index.tolist()


def test_images_of_another_model_are_judged_by_this_one(runs: dict[str, Path]) -> None:
    found, _ = evaluate(runs["at"], "nominal", "black-box", source=str(runs["nt"]))
    model, source = (load_run(runs[name], device="cpu").model.way("r") for name in ("at", "nt"))
    x, y, index = images(runs["at"])
    numbers = found["black-box"]
    assert numbers["clean"] == found["nominal"]["clean"]
    # Of the images that the judge gets right; the attack on the source cannot see which these are.
    x_adv = PGDFoolbox(source, EPS, **PGD)(x, y, index)
    assert numbers["pgd"] == pytest.approx(share(model, x, x_adv, y))
    x_adv = pulled(CarliniWagner(source, **CW)(x, y, index), x, CW_EPS)
    assert numbers["cw"] == pytest.approx(share(model, x, x_adv, y))
    assert numbers["pgd"] > found["nominal"]["pgd"]
    assert numbers["attacks"]["cw"]["source"] == str(runs["nt"])


def test_a_source_of_other_images_is_refused(runs: dict[str, Path]) -> None:
    config = runs["nt"] / "config.json"
    config.write_text(config.read_text().replace('"dataset": "digits"', '"dataset": "mnist"'))
    with pytest.raises(UserError, match="nt: trained on mnist, this run on digits; name runs of digits"):
        evaluate(runs["at"], "black-box", source=str(runs["nt"]))


def test_without_a_source_there_is_no_black_box_part(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"part black-box .*: needs --source: name a run there"):
        evaluate(runs["at"], "black-box")
