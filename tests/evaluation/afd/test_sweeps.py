"""AFD's table 2 and its figures: curves on two grids from one sweep, kept batch by batch, side by side with others'."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from robustfast.attacks import DDN, PGDFoolbox
from robustfast.errors import UserError
from robustfast.evaluation import afd
from robustfast.evaluation.afd import grids
from robustfast.evaluation.afd.grids import Grid
from robustfast.evaluation.grids import area
from robustfast.evaluation.partial_results import PartialResults
from robustfast.evaluation.parts import Request, evaluate_parts
from robustfast.evaluation.subject import run_subject
from robustfast.signals import Stopped
from robustfast.visualization.accuracy_panels import Panel, draw_accuracy_panels

IMAGES = 24
FEW: dict[str, dict[str, Any]] = {
    "pgd-linf": {"steps": 3},
    "pgd-l2": {"steps": 3, "relative_step": 0.5},
    "pgd-l1": {"steps": 2},
    "fgsm": {},
    "mim": {"steps": 2},
    "ddn": {"steps": 8},
    "deepfool": {"steps": 2},
    "cw": {"steps": 3, "search_steps": 1},
    "aa": {"version": "custom", "attacks": ("apgd-ce",), "steps": 2},
}
PRINTED = {"linf": (0.0, 0.1), "l2": (0.0, 0.5), "l1": (0.0, 2.0)}
CORRECTED = {"pgd-l2": (0.0, 0.5, 2.0), "ddn": (0.0, 0.2, 0.5)}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {}
    for name, grid in grids.SWEEPS["digits"].items():
        named = replace(grid.named, settings={**grid.named.settings, **FEW[name]})
        quick[name] = Grid(named, PRINTED[named.norm], CORRECTED.get(name))
    monkeypatch.setattr(grids, "SWEEPS", {"digits": quick})


def evaluate(run: Path, *parts: str, **fields: Any) -> tuple[dict[str, Any], str]:
    """The parts' numbers, and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    request = Request(**{"parts": parts, "images": IMAGES, "batch_size": 12, "device": "cpu", **fields})
    document = evaluate_parts(run, "afd", afd.PARTS, request, console=console)
    return {name: part["numbers"] for name, part in document["parts"].items()}, console.file.getvalue()


def test_one_sweep_gives_the_curves_on_both_grids(runs: dict[str, Path]) -> None:
    found, said = evaluate(runs["at"], "sweeps")
    subject = run_subject(runs["at"], images=IMAGES, batch_size=IMAGES, device="cpu")
    ((x, y, *_),) = subject.source.batches(0)
    index, model = torch.arange(IMAGES) * subject.images_in_split // IMAGES, subject.model
    with torch.no_grad():
        natural = model(x).argmax(1) == y

    def right(x_adv: torch.Tensor) -> float:
        with torch.no_grad():
            return (natural & (model(x_adv).argmax(1) == y)).double().mean().item()

    attacks = found["sweeps"]["attacks"]
    assert list(attacks) == list(FEW)
    expected = {0.0: right(x)}
    for eps in (0.5, 2.0):
        expected[eps] = right(PGDFoolbox(model, eps, norm="l2", steps=3, relative_step=0.5)(x, y, index))
    nearest = DDN(model, steps=8)(x, y, index)
    length = (nearest - x).flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
    pulled = {eps: right(x + (nearest - x) * (eps / length).clamp(max=1)) for eps in (0.2, 0.5)}
    for name, values in (("pgd-l2", expected), ("ddn", {0.0: right(x), **pulled})):
        for kind, eps in (("printed", PRINTED["l2"]), ("corrected", CORRECTED[name])):
            curve = attacks[name][kind]
            assert curve["eps"] == list(eps)
            assert curve["accuracy"] == pytest.approx([values[radius] for radius in eps])
            assert curve["auc"] == pytest.approx(area(eps, curve["accuracy"]))
            assert f"{curve['auc']:.4f}" in said
    assert expected[0.5] > expected[2.0]
    assert attacks["fgsm"]["corrected"] is None
    assert attacks["pgd-l2"]["settings"]["relative_step"] == 0.5
    # What both grids have was computed once.
    swept = json.loads((runs["at"] / "evaluation" / "afd-custom-sweeps.json").read_text())
    assert swept["attacks"]["pgd-l2"]["eps"] == [0, 0.5, 2]
    assert swept["attacks"]["pgd-l2"]["gradients"]["attacked"] == 2 * int(natural.sum())
    assert swept["minimal"] == "clip"
    assert imread(runs["at"] / "figures" / "afd-sweeps.png").ndim == 3


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Counts the pieces that are kept; stops with Ctrl-C at the one numbered "stop"."""
    counts = {"kept": 0, "stop": -1}
    keep = PartialResults.keep

    def counted(*arguments: Any) -> None:
        keep(*arguments)
        counts["kept"] += 1
        if counts["kept"] == counts["stop"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialResults, "keep", counted)
    return counts


def test_an_interrupted_sweep_goes_on_where_it_was(runs: dict[str, Path], keeping: dict[str, int]) -> None:
    whole, _ = evaluate(runs["at"], "sweeps")
    pieces, keeping["kept"] = keeping["kept"], 0
    (runs["at"] / "evaluation" / "afd-custom.json").unlink()
    keeping["stop"] = pieces - 5
    with pytest.raises(
        Stopped, match=r"kept in .*afd-custom-sweeps.partial: the same command goes on from there"
    ):
        evaluate(runs["at"], "sweeps")
    again, _ = evaluate(runs["at"], "sweeps")
    assert keeping["kept"] == pieces
    assert again == whole
    _, said = evaluate(runs["at"], "sweeps")
    assert "sweeps: kept (" in said
    assert keeping["kept"] == pieces


def test_curves_of_several_runs_stand_side_by_side(runs: dict[str, Path]) -> None:
    against = (f"NT={runs['nt']}",)
    with pytest.raises(UserError, match=r"needs the part sweeps of .*nt, of 24 images"):
        evaluate(runs["at"], "curves", against=against)
    theirs, _ = evaluate(runs["nt"], "sweeps")
    with pytest.raises(UserError, match=r"needs the part sweeps of .*nt, of 20 images"):
        evaluate(runs["at"], "curves", against=against, images=20)
    with pytest.raises(UserError, match="nt is this run's own name; give another one as LABEL="):
        evaluate(runs["nt"], "curves", against=(str(runs["nt"]),))
    with pytest.raises(UserError, match=r"draws the part sweeps, which .*at has not"):
        evaluate(runs["at"], "curves", against=against)
    # Sweeps of another model's weights are no better than none.
    files = [runs[name] / "evaluation" / "afd-custom.json" for name in ("nt", "at")]
    files[1].parent.mkdir(exist_ok=True)
    files[1].write_text(files[0].read_text())
    with pytest.raises(UserError, match=r"draws the part sweeps, which .*at has not"):
        evaluate(runs["at"], "curves", against=against)

    found, said = evaluate(runs["at"], "sweeps", "curves", against=against)
    attack = found["curves"]["attacks"]["pgd-l2"]
    assert list(attack["runs"]) == ["NT", "at"]
    for label, numbers in (("NT", theirs), ("at", found)):
        swept, curve = numbers["sweeps"]["attacks"]["pgd-l2"], attack["runs"][label]
        assert curve["eps"] == [0, 0.5, 2]
        assert curve["accuracy"] == [*swept["printed"]["accuracy"], swept["corrected"]["accuracy"][-1]]
        assert (curve["printed"], curve["corrected"]) == (swept["printed"]["auc"], swept["corrected"]["auc"])
        assert f"{curve['printed']:.4f}" in said
    assert imread(runs["at"] / "figures" / "afd-curves.png").ndim == 3


def test_panels_have_a_line_for_each_run_in_its_colour() -> None:
    curves = {"one": ((0, 8 / 255), (0.9, 0.1)), "two": ((0, 8 / 255, 16 / 255), (0.8, 0.4, 0.2))}
    only = {"two": ((0, 1.0), (1.0, 0.5))}
    figure = draw_accuracy_panels([Panel("a", "linf", curves), Panel("b", "l2", only)])
    first, second = figure.axes
    assert [line.get_ydata().tolist() for line in first.lines] == [[90, 10], [80, 40, 20]]
    assert first.lines[1].get_xdata() == pytest.approx([0, 8, 16])
    assert second.lines[0].get_xdata() == pytest.approx([0, 1])
    assert first.lines[1].get_color() == second.lines[0].get_color() != first.lines[0].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]
    with pytest.raises(ValueError, match="expected panels with a curve each"):
        draw_accuracy_panels([Panel("a", "linf", {})])
