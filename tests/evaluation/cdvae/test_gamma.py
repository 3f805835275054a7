"""The sweep over gamma: which runs stand in it, what is measured of each, its figure and its mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustfast.attacks import PGDC
from robustfast.errors import UserError
from robustfast.evaluation.cdvae import detection, detection_scores, gamma, threat
from robustfast.evaluation.parts import PartContext
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run
from robustfast.visualization.gamma_curves import draw_gamma_curves

Context = Callable[..., PartContext]


@pytest.fixture(scope="module")
def strong_run(train: Callable[..., Path]) -> Path:
    """The folder of a run of G and D of another gamma."""
    return train(
        "digits-cdvae", "strong", epochs=2, objective=replace(PRESETS["digits-cdvae"].objective, gamma=50.0)
    )


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection of one attack, by fewer settings."""
    monkeypatch.setattr(detection, "ATTACKS", ("fgsm",))
    monkeypatch.setattr(detection_scores, "MAGNITUDES", (0.0, 0.001))


@pytest.mark.usefixtures("cheap")
def test_each_run_is_measured_as_it_is_alone(
    context_of: Context, strong_run: Path, x_run: Path, g_run: Path, printed
) -> None:
    context = context_of(
        "cdvae", images=250, steps=2, source=str(x_run), against=(f"strong={strong_run}", str(g_run))
    )
    result = gamma.PART.make(context)
    printed(*result.tables)
    numbers = result.numbers
    assert numbers["gamma"] == [PRESETS["digits-cdvae"].objective.gamma, 50.0]
    assert numbers["run"] == ["cdvae", "strong"]
    # The other run has no classifier of its G(x): both are judged by D-hat.
    assert numbers["defence_by"] == "d_hat"
    assert numbers["defences"]["d_g"][0] is not None
    assert numbers["defences"]["d_g"][1] is None
    x, y, positions = (torch.cat(values) for values in zip(*context.batches(), strict=True))
    source = load_run(x_run, device="cpu").model.way("s")
    attacked = PGDC(source, threat.linf(context.run), 2, seed=0)(x, y, positions)
    for place, run in enumerate((context.run, load_run(strong_run, device="cpu"))):
        with torch.no_grad():
            split, network = run.model.split(x), run.model
            right = (network.way("n")(x).argmax(1) == y).double().mean().item()
            near = ((split.x - split.g).flatten(1).norm(dim=1) / split.x.flatten(1).norm(dim=1)).mean().item()
            part = network.normalisation.inverse(network.split(attacked).g)
            defence = (source(part).argmax(1) == y).double().mean().item()
        assert numbers["classification"][place] == right
        assert numbers["reconstruction"][place] == pytest.approx(1 - near, abs=1e-5)
        assert numbers["defence"][place] == pytest.approx(defence, abs=1e-9)
        assert 0.5 < numbers["detection"][place] <= 1
    assert numbers["reconstruction"][0] > numbers["reconstruction"][1]
    assert result.figures[0].read_bytes().startswith(b"\x89PNG")
    assert not (context.folder / "cdvae-gamma.partial").exists()


@pytest.mark.usefixtures("cheap")
def test_without_a_plain_classifier_there_is_no_defence(context_of: Context, strong_run: Path) -> None:
    numbers = gamma.PART.make(context_of("cdvae", images=20, against=(str(strong_run),))).numbers
    assert numbers["defence"] == [None, None]
    # So few images fit no detector.
    assert numbers["detection"] == [None, None]


def test_a_long_name_of_a_run_is_not_cut_off(printed) -> None:
    names = ("classification", "reconstruction", "detection", "defence")
    numbers = {"run": ["digits-cdvae-of-gamma-0.1"], "gamma": [0.1], "defence_by": "d_hat"}
    text = printed(gamma._table(numbers | {name: [1.0] for name in names}, "run"))
    assert text.count("100.00") == 4


def test_mistakes_are_one_line(context_of: Context, cdvae_run: Path, x_run: Path, strong_run: Path) -> None:
    def message(*against: Any) -> str:
        with pytest.raises(UserError) as caught:
            gamma.PART.make(context_of("cdvae", against=tuple(map(str, against))))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "names no other run of cdvae" in message(x_run)
    assert "two runs one" in message(f"one={strong_run}", f"one={x_run}")
    copy = cdvae_run.parent / "copy"
    if not copy.exists():
        copy.symlink_to(cdvae_run)
    assert "and so has cdvae; name one run for each gamma" in message(copy)
    context = context_of("cdvae")
    assert gamma.PART.obstacle(context.run, context.request).startswith("needs --against")
    # Classifiers of the parts stand beside a run for other parts of the protocol, which must not end here.
    context = context_of("cdvae", against=(f"d-hat={x_run}", str(cdvae_run)))
    assert "names no other run of cdvae" in gamma.PART.obstacle(context.run, context.request)
    context = context_of("cdvae", against=(str(x_run), str(strong_run)))
    assert gamma.PART.obstacle(context.run, context.request) is None
    other = context_of("x", against=(str(strong_run),))
    assert "no weight gamma" in gamma.PART.obstacle(other.run, other.request)


def test_curves_stand_at_their_gammas() -> None:
    figure = draw_gamma_curves([0.0, 0.2, 2.0], {"one": [0.1, 0.5, 1.0], "two": [None, 0.25, -0.1]})
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "0.2", "2"]
    one, two = axes.get_lines()
    assert one.get_ydata().tolist() == [10, 50, 100]
    places = one.get_xdata()
    assert places[2] - places[1] == pytest.approx(1)
    assert places[1] - places[0] == pytest.approx(1)
    assert two.get_ydata()[0] != two.get_ydata()[0]
    assert axes.get_ylim()[0] < -10
