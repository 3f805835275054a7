"""PGD of more and more steps: one long attack passes through the results of all the shorter ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustfast.attacks import PGD
from robustfast.errors import UserError
from robustfast.evaluation.rfd import iterations
from robustfast.evaluation.rfd.iterations import PART, STEPS, along_the_way
from robustfast.visualization.iteration_curve import draw_iteration_curve


def test_the_steps_are_the_papers() -> None:
    assert STEPS == (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)


def test_a_long_attack_passes_through_the_shorter_ones(context_of) -> None:
    context = context_of("um", images=30)
    model = context.run.model
    ((x, y, positions),) = context.batches()
    seen = []

    def watched(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.detach().clone())
        return model(images)

    found = along_the_way(watched, 0.1, steps=(3, 6, 9), seed=4)(x, y, positions)
    right = model(x).argmax(1) == y
    for steps in (3, 6, 9):
        x_adv = PGD(model, 0.1, steps=steps, seed=4)(x, y, positions)
        assert any(torch.equal(images, x_adv) for images in seen)
        assert torch.equal(found[str(steps)], right & (model(x_adv).argmax(1) == y))


def test_other_runs_stand_beside_it(context_of, runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterations, "STEPS", (2, 4))
    context = context_of("rfd", images=30, against=(f"standard={runs('um')}",))
    result = PART.make(context)
    numbers = result.numbers
    ((x, y, positions),) = context.batches()
    for model, accuracy in (
        (context.run.model.way("r"), numbers["accuracy"]),
        (context_of("um").run.model, numbers["others"]["standard"]),
    ):
        right = model(x).argmax(1) == y
        for steps, value in zip((2, 4), accuracy, strict=True):
            x_adv = PGD(model, 0.1, steps=steps)(x, y, positions)
            assert value == pytest.approx((right & (model(x_adv).argmax(1) == y)).double().mean().item())
    assert numbers["accuracy"] != numbers["others"]["standard"]
    assert numbers["steps"] == [2, 4]
    assert result.figures[0].read_bytes()[:4] == b"\x89PNG"


def test_a_run_on_other_images_is_refused(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of("um", images=4)
    other = replace(context.run, config=replace(context.run.config, dataset="mnist"))
    monkeypatch.setattr(type(context), "others", lambda self: {"mine": other})
    with pytest.raises(UserError, match="--against mine: a run on mnist, expected one on digits"):
        PART.make(context)


def test_the_lines_are_the_numbers() -> None:
    figure = draw_iteration_curve((10, 20), {"ours": [0.5, 0.4], "theirs": [0.3, 0.25]})
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[50.0, 40.0], [30.0, 25.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]
    with pytest.raises(ValueError, match="1 values for 2 numbers of steps"):
        draw_iteration_curve((10, 20), {"ours": [0.5]})
