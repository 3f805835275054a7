"""The grey-box table: what it says is what direct calls say, row by row; who is attacked; and that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGDC, MarginPGD, StAdv
from robustfast.errors import UserError
from robustfast.evaluation.cdvae.grey_box import HEADINGS, PART, attacks
from robustfast.evaluation.parts import PartContext, Request
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run

IMAGES, STEPS = 40, 3


@pytest.fixture(scope="session")
def hgd_run(train: Callable[..., Path], x_run: Path) -> Path:
    """The folder of a run of a denoiser before `x_run`'s classifier."""
    attack = replace(PRESETS["digits-cdvae-hgd"].attack, steps=1)
    return train("digits-cdvae-hgd", "hgd", start_from=(str(x_run),), attack=attack, epochs=1)


@pytest.fixture(scope="session")
def at_run(train: Callable[..., Path]) -> Path:
    """The folder of a run of adversarial training."""
    return train("digits-cdvae-at", "at", attack=replace(PRESETS["digits-cdvae-at"].attack, steps=1))


@pytest.fixture
def context(
    context_of: Callable[..., PartContext], runs: Callable[[str], Path]
) -> Callable[..., PartContext]:
    """context("cdvae", against=...) -> that of a run on some images with D-hat as the source."""

    def build(name: str, **request: Any) -> PartContext:
        return context_of(name, **{"images": IMAGES, "steps": STEPS, "source": str(runs("x")), **request})

    return build


def batch(context: PartContext) -> tuple[Tensor, Tensor, Tensor]:
    x, y, positions = (torch.cat(values) for values in zip(*context.batches(), strict=True))
    return x, y, positions


def made(model: Any, x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """The images of the table, from the paper's settings at the radii of the digits' presets."""
    step, of = STEPS**-0.5, {"linf": 0.15, "l2": 0.5}
    found = {"clean": x}
    for norm, eps in of.items():
        found[f"pgd-{norm}"] = PGDC(model, eps, STEPS, norm=norm)(x, y, positions)
        margin = MarginPGD(model, eps, kappa=10, norm=norm, steps=STEPS, relative_step=step)
        found[f"cw-{norm}"] = margin(x, y, positions)
    return {**found, "stadv": StAdv(model, eps=0.05, steps=STEPS)(x, y, positions)}


def accuracies(judge: Callable[[Tensor], Tensor], images: dict[str, Tensor], y: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        return {
            column: pytest.approx((judge(shown).argmax(1) == y).double().mean().item(), abs=1e-9)
            for column, shown in images.items()
        }


def test_the_part_says_what_direct_calls_say(
    context: Callable[..., PartContext], runs: Callable[[str], Path], printed
) -> None:
    here = context("cdvae", against=(str(runs("g")),))
    result = PART.make(here)
    numbers = dict(result.numbers)
    described = numbers.pop("attacks")
    d_hat, d_g = (load_run(runs(name), device="cpu").model for name in ("x", "g"))
    generator = here.run.model.generator.eval()
    x, y, positions = batch(here)

    def part(images: Tensor) -> Tensor:
        return generator((images - 0.3053) / 0.3760).image

    images = made(d_hat.way("s"), x, y, positions)
    assert numbers == {
        "undefended": accuracies(d_hat.way("s"), images, y),
        "d_g": accuracies(lambda images: d_g.classifier_g(part(images)), images, y),
        "d_hat": accuracies(lambda images: d_hat.classifier_x(part(images)), images, y),
    }
    assert list(numbers["undefended"]) == list(HEADINGS)
    assert numbers["undefended"]["pgd-linf"] < numbers["undefended"]["clean"]
    assert {name: (found["attack"], found["eps"], found["steps"]) for name, found in described.items()} == {
        "pgd-linf": ("pgd-c", 0.15, STEPS),
        "cw-linf": ("cw-pgd", 0.15, STEPS),
        "pgd-l2": ("pgd-c", 0.5, STEPS),
        "cw-l2": ("cw-pgd", 0.5, STEPS),
        "stadv": ("stadv", 0.05, STEPS),
    }
    assert [found["kappa"] for name, found in described.items() if name.startswith("cw")] == [10, 10]
    (table,) = result.tables
    printed(*result.tables)
    assert [next(table.columns[0].cells), table.row_count] == ["undefended", 3]


def test_without_a_classifier_of_g_the_plain_one_judges_alone(context: Callable[..., PartContext]) -> None:
    assert set(PART.make(context("cdvae", images=8, steps=1)).numbers) == {"undefended", "d_hat", "attacks"}


def test_a_denoiser_stands_before_what_is_attacked(context: Callable[..., PartContext]) -> None:
    here = context("hgd")
    numbers = dict(PART.make(here).numbers)
    model = here.run.model
    x, y, positions = batch(here)
    images = made(model.way("s"), x, y, positions)
    del numbers["attacks"]
    # Its classifier is D-hat, and the attack knows nothing of the denoiser.
    assert numbers == {
        "undefended": accuracies(model.way("s"), images, y),
        "own": accuracies(model.way("r"), images, y),
    }


def test_a_robust_classifier_is_attacked_itself_too(context: Callable[..., PartContext]) -> None:
    here = context("at")
    numbers = dict(PART.make(here).numbers)
    way = here.run.model.way("r")
    x, y, positions = batch(here)
    assert numbers["own"] == accuracies(way, made(here.source(), x, y, positions), y)
    assert numbers["itself"] == accuracies(way, made(way, x, y, positions), y)
    assert numbers["itself"]["pgd-linf"] < numbers["own"]["pgd-linf"]


def test_the_plain_classifier_against_itself_is_attacked_once(context: Callable[..., PartContext]) -> None:
    numbers = PART.make(context("x", images=8, steps=1)).numbers
    assert set(numbers) == {"undefended", "own", "attacks"}
    assert numbers["own"] == numbers["undefended"]


def test_an_interrupted_table_goes_on_where_it_was(
    context: Callable[..., PartContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PART.make(context("hgd", batch_size=20)).numbers
    calls: list[str] = []
    run = PGDC.__call__

    def counted(self: PGDC, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        calls.append(self.norm)
        if stopping and calls == ["linf"] * 2 + ["l2"] * 2:
            raise KeyboardInterrupt
        return run(self, x, *arguments, **keywords)

    monkeypatch.setattr(PGDC, "__call__", counted)
    stopping = True
    here = context("hgd", batch_size=20)
    with pytest.raises(KeyboardInterrupt):
        PART.make(here)
    assert (here.folder / "cdvae-grey-box.partial").is_dir()
    calls.clear()
    stopping = False
    assert PART.make(here).numbers == whole
    # Two batches of linf and one of l2 were kept.
    assert calls == ["l2"]
    assert not (here.folder / "cdvae-grey-box.partial").exists()


def test_steps_are_the_papers_unless_bounded(context: Callable[..., PartContext]) -> None:
    here = context("cdvae")
    found = attacks(here.source(), here.run)
    assert list(found) == [name for name in HEADINGS if name != "clean"]
    assert {attack.steps for attack in found.values()} == {100}
    assert {"steps", "against"} <= set(PART.takes)


def test_what_it_refuses(context: Callable[..., PartContext], monkeypatch: pytest.MonkeyPatch) -> None:
    here = context("cdvae", images=4, source="three")
    assert PART.obstacle(here.run, Request()) == "needs --source: name D-hat (a run of cdvae-x) there"
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    monkeypatch.setattr(type(here), "source", lambda self: three)
    with pytest.raises(
        UserError, match=r"--source three: it gives \[1, 3\] for one image, expected the 10 logits of .*cdvae"
    ):
        PART.make(here)
