"""A run whose steps are read one late: the same run, and the same end where a loss is not finite."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_graphs import fake_graphs
from tiny_runs import assert_equal, few_digits, metrics, tiny
from torch import Tensor

from robustfast.errors import UserError
from robustfast.objectives import AAT, Phase
from robustfast.signals import Stopped, StopRequest
from robustfast.training import checkpoint, trainer
from robustfast.training import fit as fit_module
from robustfast.training.config import TrainConfig
from robustfast.training.fit import fit, resume
from robustfast.training.whole_step import WholeStep

IMAGES, STEPS = 52, 7  # an epoch's, in batches of eight and a last one of four


def train_on(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    def load(name: str, split: str, *args: Any, **options: Any) -> Any:
        digits = few_digits(name, split, *args, **options)
        return dataclasses.replace(digits, images=digits.images[:images], labels=digits.labels[:images])

    monkeypatch.setattr(fit_module, "load", load)


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    train_on(monkeypatch, IMAGES)
    # `--device cpu` refuses graphs, and faked ones belong on a CPU wherever these tests run.
    monkeypatch.setattr(
        fit_module, "resolve_device", lambda name: torch.device("cpu" if name == "auto" else name)
    )
    # Exact in float32, as a graph reads it.
    monkeypatch.setattr(trainer, "learning_rate", lambda config, number, steps: 2 ** -(7 + number % 2))


def config(out: Path, **fields: Any) -> TrainConfig:
    base = tiny("digits-st", out=out, batch_size=8, device="auto", average="ema", validate_every=0, **fields)
    return dataclasses.replace(base, attack=dataclasses.replace(base.attack, ramp=0.0))


def stored(run: Path, name: str) -> dict[str, Any]:
    """A checkpoint without what measures time."""
    state = checkpoint.load(run / "checkpoints" / name)
    # The bytes of metrics.jsonl count the digits of its timings.
    del state["metrics_bytes"]
    for meter in state["meters"]:
        del meter["seconds"]
    return state


def poison(monkeypatch: pytest.MonkeyPatch, epoch: int, sample: int) -> None:
    """The loss of the batch with this sample is nan in that epoch; running statistics stay finite."""
    phases = AAT.phases

    def broken(self: AAT, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        there = (index == sample).any().float() * (self.epoch == epoch)
        for phase in phases(self, x, y, index):
            yield dataclasses.replace(phase, loss=phase.loss + (0 / (1 - there)).detach())

    monkeypatch.setattr(AAT, "phases", broken)


def order(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The samples of each step of a run."""
    seen: list[Tensor] = []
    phases = AAT.phases
    with monkeypatch.context() as patch:

        def noted(self: AAT, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            seen.append(index.clone())
            return phases(self, x, y, index)

        patch.setattr(AAT, "phases", noted)
        fit(config(out))
    return seen


@pytest.mark.parametrize("fields", [{}, {"checkpoint_steps": 4}])
def test_a_run_of_replays_is_the_run_of_eager_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    fit(config(tmp_path / "plain", **fields))
    graphs = fake_graphs(monkeypatch)
    fit(config(tmp_path / "graphed", whole_step="graph", **fields))
    assert [graph.replays for graph in graphs] == [STEPS - 3, STEPS - 1]
    lines = metrics(tmp_path / "graphed")
    assert metrics(tmp_path / "plain") == lines
    assert all(0 < share <= 1 for line in lines for share in line["accuracy"].values())
    assert [list(line["accuracy"]) for line in lines] == [["st_s", "st_r", "st_n"]] * 2
    assert_equal(*(stored(tmp_path / name, "last.pt") for name in ("plain", "graphed")), "last.pt")


# Steps from 0: 2 is the first replay, 3 the last before a checkpoint, 5 before an eager step, 6 that one.
# With 48 images the last step of an epoch is a replay too.
@pytest.mark.parametrize(
    ("bad", "checkpoint_steps", "images"),
    [(2, 0, 52), (3, 4, 52), (5, 0, 52), (6, 4, 52), (7, 0, 52), (12, 4, 52), (5, 0, 48), (11, 0, 48)],
)
def test_a_loss_that_is_not_finite_ends_both_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int, checkpoint_steps: int, images: int
) -> None:
    train_on(monkeypatch, images)
    seen = order(tmp_path / "order", monkeypatch)
    epoch, step = divmod(bad, len(seen) // 2)
    poison(monkeypatch, epoch, int(seen[bad][0]))
    ends = []
    for name, how in (("plain", "eager"), ("graphed", "graph")):
        if how == "graph":
            fake_graphs(monkeypatch)
        run = config(tmp_path / name, whole_step=how, checkpoint_steps=checkpoint_steps)
        with pytest.raises(UserError) as stopped:
            fit(run)
        ends.append(str(stopped.value).replace(str(run.out), "RUN"))
    assert ends[0] == ends[1]
    assert f"in epoch {epoch + 1}, step {step + 1}, on {len(seen[bad])} images" in ends[0]
    for file in ("nonfinite.pt", *["last.pt"] * (bad >= (checkpoint_steps or len(seen) // 2))):
        assert_equal(*(stored(tmp_path / name, file) for name in ("plain", "graphed")), file)


def asked_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """SIGTERM comes while this step is under way."""
    made, step = 0, WholeStep.step

    def counted(self: WholeStep, *args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return step(self, *args, **options)

    monkeypatch.setattr(WholeStep, "step", counted)
    monkeypatch.setattr(
        StopRequest,
        "number",
        property(lambda self: int(signal.SIGTERM) * (made >= steps), lambda self, value: None),
        raising=False,
    )


def test_a_signal_waits_for_the_newest_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_graphs(monkeypatch)
    plain, stopped = (config(tmp_path / name, whole_step="graph") for name in ("plain", "stopped"))
    fit(plain)
    with monkeypatch.context() as patch:
        asked_after(patch, 5)
        with pytest.raises(Stopped, match="after 5 steps; continue with"):
            fit(stopped)
    resume(stopped.out)
    assert metrics(plain.out) == metrics(stopped.out)
    assert_equal(stored(plain.out, "last.pt"), stored(stopped.out, "last.pt"), "last.pt")


def test_a_signal_after_a_bad_step_saves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = order(tmp_path / "order", monkeypatch)
    fake_graphs(monkeypatch)
    poison(monkeypatch, 0, int(seen[4][0]))
    asked_after(monkeypatch, 5)
    run = config(tmp_path / "run", whole_step="graph")
    with pytest.raises((UserError, Stopped), match=r"is nan .* in epoch 1, step 5, "):
        fit(run)
    assert [file.name for file in (run.out / "checkpoints").iterdir()] == ["nonfinite.pt"]


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [3, 5, 8])
def test_on_a_gpu_the_error_names_the_batch_that_broke(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    seen = order(tmp_path / "order", monkeypatch)
    epoch, step = divmod(bad, STEPS)
    poison(monkeypatch, epoch, int(seen[bad][0]))
    run = config(tmp_path / "run", whole_step="graph")
    run = dataclasses.replace(run, device="cuda")
    some = ", ".join(map(str, seen[bad].tolist()))
    with pytest.raises(
        UserError, match=rf"is nan .* in epoch {epoch + 1}, step {step + 1}, .*\(indices {some}"
    ):
        fit(run)
    state = stored(run.out, "nonfinite.pt")
    assert (state["epoch"], state["step"]) == (epoch, step)
    assert state["index"].tolist() == seen[bad].tolist()
    assert [meter["images"] for meter in state["meters"]] == [8 * step]
    assert all(value.isfinite().all() for value in state["model"].values())
