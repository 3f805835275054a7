"""Early stopping on images that are never trained on: which they are, when a run ends, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_end, few_digits, metrics, tiny

from robustfast import train
from robustfast.command_line import main_wrapper
from robustfast.data import Batch, load
from robustfast.errors import UserError
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.early_stopping import EarlyStopping, set_aside
from robustfast.training.engine import Engine
from robustfast.training.fit import fit, resume
from robustfast.training.held_out import HeldOutCheck, HeldOutResult
from robustfast.training.run_folder import load_run


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


def checked_as(monkeypatch: pytest.MonkeyPatch, robust: list[float]) -> None:
    """Let the check after epoch n find the n-th of these robust accuracies."""

    def found(self: HeldOutCheck, epoch: int) -> HeldOutResult:
        return HeldOutResult({"r": 1.0, "n": 1.0}, {"r": robust[epoch], "n": 0.0})

    monkeypatch.setattr(HeldOutCheck, "__call__", found)


def test_counts_checks_without_a_better_one() -> None:
    early = EarlyStopping(2)
    found = [early.better(robust, epoch) for epoch, robust in enumerate([0.1, 0.3, 0.3, 0.2], start=1)]
    assert found == [True, True, False, False]
    assert (early.best, early.epoch, early.without, early.due) == (0.3, 2, 2, True)
    again = EarlyStopping(2)
    again.load_state_dict(early.state_dict())
    assert again == early
    assert not EarlyStopping(0, without=100).due


def test_set_aside_is_a_split_that_depends_on_the_seed() -> None:
    digits = load("digits", "train")
    rest, held_out, kept = set_aside(digits, 200, seed=0)
    assert (len(held_out), len(rest)) == (200, len(digits) - 200)
    assert torch.equal(rest.images, digits.images[kept])
    others = torch.ones(len(digits), dtype=torch.bool)
    others[kept] = False
    assert torch.equal(held_out.labels, digits.labels[others])
    # By lot: from all over the split, of all classes.
    assert len(held_out.labels.unique()) == 10
    assert others[: len(digits) // 2].sum() > 70
    assert torch.equal(set_aside(digits, 200, seed=0)[2], kept)
    assert not torch.equal(set_aside(digits, 200, seed=1)[2], kept)


def test_trains_on_no_image_that_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = few_digits("digits", "train")
    kept = set_aside(whole, 30, seed=0)[2]
    trained, checked = [], []
    step = Engine.step

    def seen(self: Engine, batch: Batch, **keywords: Any) -> Any:
        trained.append(batch)
        return step(self, batch, **keywords)

    check = HeldOutCheck.__init__

    def built(self: HeldOutCheck, *args: Any) -> None:
        check(self, *args)
        checked.append(self)

    monkeypatch.setattr(Engine, "step", seen)
    monkeypatch.setattr(HeldOutCheck, "__init__", built)
    # More images are held out than a check of the test split would take: all of them are checked.
    fit(tiny("digits-st", out=tmp_path / "run", epochs=1, hold_out=30, validate_images=5))
    index = torch.cat([batch.index for batch in trained])
    assert index.sort().values.tolist() == list(range(66))
    x = torch.cat([batch.x for batch in trained])
    assert torch.equal(x, whole.images[kept[index]] / 16)
    assert checked[0].images == 30


def test_refuses_to_hold_out_everything(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--hold-out 96: expected fewer than the 96 training images of digits"
    ):
        fit(tiny("digits-st", out=tmp_path / "run", hold_out=96))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of at most 9 epochs that is best after the third and stops after the fifth."""
    checked_as(monkeypatch, [0.1, 0.2, 0.4, 0.3, 0.4, 0.9])
    return fit(tiny("digits-st", out=tmp_path / "run", epochs=9, early_stop=2, hold_out=30))


def test_stops_after_checks_without_a_better_one(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = metrics(stopped)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line.get("stopped_early") for line in lines] == [None, None, None, None, True]
    last = f"{stopped} is finished: 5 epochs, stopped early 2 checks after the best one, that of epoch 3\n"
    assert load_run(stopped, which="best", device="cpu").epoch == 3
    assert load_run(stopped, device="cpu").epoch == 5
    # The best weights are those of the third epoch, not of a later one.
    best = checkpoint.load(stopped / "checkpoints" / "best.pt")
    assert best["robust"] == 0.4
    # It knows that it is finished.
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    resume(stopped)
    assert capsys.readouterr().out.endswith(last)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("epoch", [2, 4, 5])
def test_a_resumed_run_stops_where_it_would_have(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    config = tiny("digits-st", out=tmp_path / "again", epochs=9, early_stop=2, hold_out=30)

    class LeaveError(Exception):
        pass

    save = checkpoint.save

    def leave(state: dict[str, Any], path: Path, **keywords: Any) -> None:
        if path.name == "last.pt" and state["epoch"] == epoch:
            raise LeaveError
        save(state, path, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", leave)
        with pytest.raises(LeaveError):
            fit(config)
    assert_same_end(resume(config.out), stopped)


def test_what_is_evaluated_is_what_was_selected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checked_as(monkeypatch, [0.4, 0.2, 0.1, 0.1])
    monkeypatch.chdir(tmp_path)
    argv = (
        "digits-st --epochs 4 --device cpu --no-tensorboard --validate-every 1 --early-stop 1 --hold-out 30"
    )
    attack = ["--attack.steps", "1", "--out", "run"]
    assert main_wrapper(train.main, [*argv.split(), *attack]) == 0
    document = json.loads((tmp_path / "run" / "evaluation" / "aat.json").read_text())
    assert document["checkpoint"] == {"name": "best", "epoch": 1}
    assert len(metrics(tmp_path / "run")) == 2


def test_indices_in_messages_are_those_of_the_whole_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = set_aside(few_digits("digits", "train"), 30, seed=0)[2]
    config = tiny("digits-st", out=tmp_path / "run", hold_out=30)
    seen: list[Batch] = []
    following = fit_module.Trainer._next

    def poisoned(self: Any, *others: Any) -> Batch:
        batch = following(self, *others)
        seen.append(batch)
        return batch._replace(x=batch.x * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Trainer, "_next", poisoned)
        with pytest.raises(UserError, match=r"nonfinite\.pt") as caught:
            fit(config)
    index = kept[seen[0].index]
    assert f"(indices {', '.join(map(str, index[:8].tolist()))}, ...)" in str(caught.value)
    assert torch.equal(checkpoint.load(config.out / "checkpoints" / "nonfinite.pt")["index"], index)
