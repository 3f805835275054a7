"""The white-box table: direct calls of the same attacks, on the mean of the code and on draws of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustfast.attacks import JPEG, PGDC, AutoAttack, ReColorAdv, StAdv
from robustfast.evaluation.attack_names import parse
from robustfast.evaluation.cdvae import PARTS, white_box
from robustfast.evaluation.parts import PartContext, Request, evaluate_parts
from robustfast.evaluation.pieces import pieces
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run

Context = Callable[..., PartContext]
CHEAP = {**white_box.ATTACKS, "aa-linf": "apgd-ce", "aa-l2": "apgd-ce-l2"}


@pytest.fixture(scope="session")
def adv_run(train: Callable[..., Path], cdvae_run: Path, x_run: Path) -> Path:
    """The folder of a run that hardened `cdvae_run` for a moment."""
    attack = replace(PRESETS["digits-cdvae-adv"].attack, steps=1)
    return train(
        "digits-cdvae-adv",
        "adv",
        epochs=2,
        attack=attack,
        start_from=(str(cdvae_run), f"classifier_g={x_run}"),
    )


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """APGD in place of AutoAttack, gradients of three passes."""
    monkeypatch.setattr(white_box, "ATTACKS", CHEAP)
    monkeypatch.setattr(white_box, "PASSES", 3)


def test_the_attacks_are_the_papers() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    built = {
        column: parse(name).build(model, parse(name).own_eps or 1.0, steps=white_box.STEPS)
        for column, name in white_box.ATTACKS.items()
    }
    assert list(built) == ["aa-linf", "aa-l2", "jpeg", "recolor", "stadv", "pgd"]
    kinds = [AutoAttack, AutoAttack, JPEG, ReColorAdv, StAdv, PGDC]
    assert [type(attack) for attack in built.values()] == kinds
    assert [built[column].norm for column in ("aa-linf", "aa-l2", "pgd")] == ["linf", "l2", "linf"]
    assert [built[column].eps for column in ("jpeg", "recolor", "stadv")] == [0.125, 0.06, 0.05]
    assert all(attack.steps == 100 for attack in built.values())
    assert built["aa-linf"].queries == white_box.QUERIES == 5000
    assert built["pgd"].relative_step == 0.1
    assert white_box.PASSES == 20


def test_the_unseen_mean_leaves_out_the_norm_of_the_training_and_is_the_papers(
    adv_run: Path, g_run: Path
) -> None:
    """Table 7's last rows, and its first one, which saw none of the attacks."""
    columns = ("aa-linf", "aa-l2", "recolor", "jpeg", "stadv")

    def row(*values: float) -> dict[str, float]:
        return dict(zip(columns, values, strict=True)) | {"pgd": 1e9}

    hardened, plain = load_run(adv_run, device="cpu"), load_run(g_run, device="cpu")
    assert white_box.seen_columns(hardened) == ("aa-linf", "pgd")
    assert white_box.seen_columns(plain) == ()
    ours = row(40.5, 43.1, 73.1, 62.1, 27.4)
    assert white_box.unseen_mean(ours, white_box.seen_columns(hardened)) == pytest.approx(51.4, abs=0.05)
    assert white_box.unseen_mean(row(0, 0, 0.4, 0, 0), ()) == pytest.approx(0.1, abs=0.05)


@pytest.mark.usefixtures("cheap")
def test_both_halves_are_those_of_direct_calls(context_of: Context, adv_run: Path, printed) -> None:
    context = context_of("adv", images=12, steps=2)
    result = white_box.PART.make(context)
    numbers = result.numbers
    assert list(numbers) == ["seen", "mean", "sampled", "sampling"]
    assert numbers["sampling"] == {"sample_at_test": True, "passes": 3}
    model = context.run.model.way("r")
    assert model.model.generator.sample_at_test is False
    ((x, y, positions),) = context.batches()
    right = model(x).argmax(1) == y
    mean = numbers["mean"]
    assert mean["clean"] == right.double().mean().item()
    assert mean["clean"] > 0.3
    for column, attack in {
        "pgd": PGDC(model, context.run.config.attack.eps, 2),
        "stadv": StAdv(model, steps=2),
        "jpeg": JPEG(model, steps=2),
        "recolor": ReColorAdv(model, steps=2),
    }.items():
        left = right & (model(attack(x, y, positions)).argmax(1) == y)
        assert mean[column] == left.double().mean().item(), column
        assert mean["attacks"][column]["steps"] == 2
        assert mean["attacks"][column]["sample_at_test"] is False
    sampled = numbers["sampled"]
    assert set(sampled) == set(mean) == {"clean", *CHEAP, "attacks", "warnings", "unseen_mean"}
    for column in ("stadv", "jpeg", "recolor"):
        assert sampled["attacks"][column]["eot"] == 3
        assert mean["attacks"][column]["eot"] == 1
    assert all(attack["sample_at_test"] for attack in sampled["attacks"].values())
    assert mean["unseen_mean"] == pytest.approx(
        sum(mean[column] for column in ("aa-l2", "jpeg", "recolor", "stadv")) / 4
    )
    assert len(result.tables[0].rows) == 2
    printed(*result.tables)


@pytest.mark.usefixtures("cheap")
def test_the_widest_numbers_fit_into_80_columns(
    context_of: Context, adv_run: Path, monkeypatch: pytest.MonkeyPatch, printed
) -> None:
    best = dict.fromkeys(("clean", *white_box.ATTACKS), 1.0) | {"warnings": []}
    monkeypatch.setattr(white_box, "half", lambda *context, sampled: dict(best))
    text = printed(*white_box.PART.make(context_of("adv", images=8)).tables)
    assert text.count("100.00") == 2 * 8
    assert "drawn, EOT" in text


def test_the_draws_are_the_same_each_time_and_from_nowhere_else(
    context_of: Context, adv_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(white_box, "ATTACKS", {"jpeg": "jpeg", "pgd": "pgd-c"})
    context = context_of("adv", images=8, steps=1)
    state = torch.get_rng_state()
    drawn: list[Any] = []
    real = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with pieces(context, "again") as kept:
            found.append(white_box.half(context, kept, sampled=True))
    assert found[0] == found[1]
    half = len(drawn) // 2
    assert half > 3
    assert all(torch.equal(a, b) for a, b in zip(drawn[:half], drawn[half:], strict=True))
    assert not torch.equal(drawn[0], drawn[1])
    torch.set_rng_state(state)


@pytest.mark.usefixtures("cheap")
def test_a_network_without_g_has_no_draws(context_of: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(white_box, "ATTACKS", {"stadv": "stadv"})
    result = white_box.PART.make(context_of("x", images=8, steps=1))
    assert list(result.numbers) == ["seen", "mean"]
    assert result.numbers["seen"] == []
    assert len(result.tables[0].rows) == 1


def test_the_run_of_g_and_d_alone_has_nothing_to_attack(cdvae_run: Path, g_run: Path) -> None:
    reason = white_box.PART.unfit(load_run(cdvae_run, device="cpu"))
    assert reason == (
        "cdvae (cdvae) trained no classifier of G(x); evaluate a run of cdvae_adv or of cdvae_classifier"
    )
    assert white_box.PART.unfit(load_run(g_run, device="cpu")) is None
    assert white_box.PART in PARTS


@pytest.mark.usefixtures("cheap")
def test_a_stop_in_the_second_half_keeps_the_first(adv_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the protocol: what the mean half did is found again, and not done again."""
    monkeypatch.setattr(white_box, "ATTACKS", {"pgd": "pgd-c", "jpeg": "jpeg"})
    calls: list[bool] = []
    real = PGDC._run

    def run(self: PGDC, *rest: Any, **more: Any) -> torch.Tensor:
        calls.append(self.model.model.generator.sample_at_test)
        if stop and calls[-1]:
            raise KeyboardInterrupt
        return real(self, *rest, **more)

    monkeypatch.setattr(PGDC, "_run", run)
    request = Request(parts=("white-box",), images=8, steps=1, device="cpu")
    stop = True
    with pytest.raises(KeyboardInterrupt):
        evaluate_parts(adv_run, "cdvae", PARTS, request)
    assert calls == [False, True]
    stop = False
    document = evaluate_parts(adv_run, "cdvae", PARTS, request)
    assert calls == [False, True, True]
    assert set(document["parts"]["white-box"]["numbers"]) == {"seen", "mean", "sampled", "sampling"}
