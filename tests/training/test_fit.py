"""Training end to end on real digits: what a run leaves behind, and that stopping it changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adversary import Adversary
from tiny_runs import assert_equal, assert_same_end, few_digits, metrics, tiny

from robustfast.data import Dataset
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.objectives import OBJECTIVES, Phase
from robustfast.signals import Stopped
from robustfast.training import checkpoint
from robustfast.training import fit as fit_module
from robustfast.training.averaging import Average
from robustfast.training.engine import Engine
from robustfast.training.fit import fit, resume
from robustfast.training.held_out import HeldOutCheck
from robustfast.training.presets import SYSTEMS
from robustfast.training.run_folder import RunFolder, load_run


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "load", few_digits)


class StopError(Exception):
    """Stands for the process ending."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the engine make this many steps and no more."""
    made = 0
    step = Engine.step

    def limited(self: Engine, *args: Any, **kwargs: Any) -> Any:
        nonlocal made
        if made == steps:
            raise StopError
        made += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "step", limited)


# Of the terms of a loss that do not count once.
WEIGHTS = {
    "trades": {"divergence": 6},
    "mart": {"divergence": 5},
    "alp": {"clean": 0.5, "adversarial": 0.5, "pairing": 0.5},
}


@pytest.mark.parametrize("method", [method for method in SYSTEMS["aat"].methods if method != "pi"])
def test_every_objective_leaves_a_whole_run(method: str, tmp_path: Path) -> None:
    run = fit(tiny(f"digits-{method}", out=tmp_path / "run", tensorboard=True))
    lines = metrics(run)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert [line["step"] for line in lines] == [3, 6]
    weights = WEIGHTS.get(method, {})
    total = sum(weights.get(name, 1) * term for name, term in lines[0]["terms"].items())
    assert lines[0]["loss"] == pytest.approx(total, rel=1e-5)
    ways = {"st": "srn", "aat": "srn", "aatpp": "srn"}.get(method, "r")
    assert list(lines[1]["natural"]) == list(ways)
    assert list(lines[1]["adversarial"]) == list(ways.replace("s", ""))

    record = json.loads((run / "config.json").read_text())
    assert record["config"]["preset"] == f"digits-{method}"
    assert record["hardware"]["torch"] == torch.__version__
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    last = load_run(run, device="cpu")
    assert (last.epoch, last.config.preset, last.model.training) == (2, f"digits-{method}", False)
    assert load_run(run, which="best", device="cpu").epoch in (1, 2)


def test_training_moves_only_the_ways_of_the_objective(tmp_path: Path) -> None:
    one_way = {"method": "st", "objective": OBJECTIVES["st"].Config()}
    run = load_run(fit(replace(tiny("digits-st", out=tmp_path / "st"), **one_way)), device="cpu").model
    other = load_run(fit(tiny("digits-at", out=tmp_path / "at")), device="cpu").model
    # Both start from the same weights of the seed; ST leaves encoder_r there, AT encoder_n.
    for name, untouched in run.encoder_r.named_parameters():
        assert not torch.equal(untouched, other.encoder_r.get_parameter(name)), name
    weights = replace(tiny("digits-st", out=tmp_path / "short", epochs=1), **one_way)
    short = load_run(fit(weights), device="cpu").model
    for (name, first), second in zip(
        short.encoder_r.state_dict().items(), run.encoder_r.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second), name


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(tmp_path: Path) -> None:
    first, second = (fit(tiny(out=tmp_path / name)) for name in "ab")
    assert_same_end(first, second)
    other = fit(tiny(out=tmp_path / "c", seed=1))
    assert metrics(other)[0]["loss"] != metrics(first)[0]["loss"]


def test_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    fit(tiny("digits-st", out=tmp_path / "run", epochs=1))
    assert torch.equal(torch.rand(1), expected)


# 0: before the first step. 2: inside the first epoch. 3: in the second epoch, at its start. 5: inside it.
@pytest.mark.parametrize("steps", [0, 2, 3, 5])
@pytest.mark.parametrize("checkpoint_steps", [0, 1])
def test_resumed_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, checkpoint_steps: int, whole: Path
) -> None:
    config = tiny(out=tmp_path / "run", checkpoint_steps=checkpoint_steps)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(StopError):
            fit(config)
    if checkpoint_steps and steps in (2, 5):
        state, _ = checkpoint.load_newest(config.out / "checkpoints")
        assert (state["epoch"], state["step"]) == divmod(steps, 3)
    assert_same_end(resume(config.out), whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "load", few_digits)
        return fit(tiny(out=tmp_path_factory.mktemp("whole") / "run", tensorboard=True))


def test_dropout_augmentation_and_schedule_resume_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmallCNN has dropout, which draws from torch's generator; crops, flips and one-cycle ride along."""
    generator = torch.Generator().manual_seed(0)
    noise = Dataset(
        "noise",
        torch.randint(0, 256, (48, 1, 28, 28), dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (48,), generator=generator),
        tuple("0123456789"),
    )
    monkeypatch.setattr(fit_module, "load", lambda *args, **_: noise)
    config = tiny(
        "mnist-aatpp",
        batch_size=20,
        schedule="onecycle",
        milestones=(),
        augment=True,
        checkpoint_steps=2,
        lr=0.01,
    )
    whole = fit(replace(config, out=tmp_path / "whole"))
    for steps in (2, 4):
        out = tmp_path / str(steps)
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(StopError):
                fit(replace(config, out=out))
        assert_same_end(resume(out), whole)


def test_resume_of_a_finished_run_changes_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    resume(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before
    assert "is finished: 2 epochs" in capsys.readouterr().out


def test_interrupt_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Engine, *args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupt)
    with pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'run'}"):
        fit(tiny(out=tmp_path / "run"))


def test_nan_loss_stops_with_checkpoint_and_indices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("digits-st", out=tmp_path / "run")
    trainer = fit_module.Trainer
    following = trainer._next

    def poison(self: Any, *others: Any) -> Any:
        """One image of the second epoch's second batch is not a number."""
        batch = following(self, *others)
        if (self.epoch, self.step) != (1, 1):
            return batch
        x = batch.x.clone()
        x[3] = float("nan")
        return batch._replace(x=x)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_next", poison)
        with pytest.raises(UserError) as raised:
            fit(config)
    message = str(raised.value)
    assert "\n" not in message
    assert "loss of phase 'model' is nan" in message
    assert "epoch 2, step 2, on 32 images (indices " in message
    state = checkpoint.load(config.out / "checkpoints" / "nonfinite.pt")
    assert (state["epoch"], state["step"], len(state["index"])) == (1, 1, 32)
    assert f"indices {', '.join(map(str, state['index'][:8].tolist()))}, ..." in message
    assert "all indices and the weights that gave this loss are in " in message
    # The good checkpoint is whole: with the image mended the run ends as if nothing had been.
    assert_same_end(resume(config.out), fit(replace(config, out=tmp_path / "whole")))


class Breaking(Adversary):
    """The second of its three phases has no number for a loss in the second step of the second epoch."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    weights: dict[str, Any]

    def phases(self, *batch: Any) -> Iterator[Phase]:
        for phase in super().phases(*batch):
            if (phase.optimizer, self.epoch, self.progress) != ("discriminator", 1, 4 / 6):
                yield phase
                continue
            Breaking.weights = {
                part: {name: p.detach().clone() for name, p in network.named_parameters()}
                for part, network in ({"model": self.model} | self.networks()).items()
            }
            yield replace(phase, loss=phase.loss * float("nan"))


def test_what_a_loss_that_is_not_finite_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that gave it, which an earlier phase of the step has moved; all that was not in that is as before."""
    monkeypatch.setitem(OBJECTIVES, "breaking", Breaking)
    before: dict[str, Any] = {}
    following = fit_module.Trainer._next

    def watched(self: Any, *others: Any) -> Any:
        if (self.epoch, self.step) == (1, 1):
            before.update(deepcopy(self.state()))
        return following(self, *others)

    monkeypatch.setattr(fit_module.Trainer, "_next", watched)
    config = tiny("digits-at", out=tmp_path / "run", average="ema", ema_decay=0.9)
    with pytest.raises(UserError, match="loss of phase 'discriminator' is nan"):
        fit(replace(config, method="breaking", objective=Breaking.Config()))
    state = checkpoint.load(config.out / "checkpoints" / "nonfinite.pt")
    del state["index"]
    assert list(state) == list(before)

    model, old = state.pop("model"), before.pop("model")
    moved = {name for name, value in old.items() if not torch.equal(model[name], value)}
    parameters = Breaking.weights["model"]
    assert_equal({name: model[name] for name in parameters}, parameters, "those of the loss")
    assert any(name.startswith("encoder_r.") for name in moved & set(parameters))
    assert not any(name.startswith("encoder_n.") for name in moved)
    # Batch norms have seen the batch.
    statistics = {name for name in old if name.startswith("encoder_r.") and name not in parameters}
    assert statistics
    assert statistics <= moved

    engine, earlier = state.pop("engine"), before.pop("engine")
    assert_equal(
        dict(engine["networks"]["discriminator"]), Breaking.weights["discriminator"], "discriminator"
    )
    assert_equal(engine["networks"], earlier["networks"], "networks")
    for name in ("discriminator", "encoder"):
        assert_equal(engine["optimizers"][name], earlier["optimizers"][name], name)
    with pytest.raises(AssertionError, match="classifier/state"):
        assert_equal(engine["optimizers"]["classifier"], earlier["optimizers"]["classifier"], "classifier")

    # All else is that before the step: average, meters, epoch and step, early stopping.
    assert_equal(state, before, "state")


def test_infinite_weights_never_reach_a_checkpoint(tmp_path: Path) -> None:
    # One step an epoch, so that no later loss of the epoch shows what the step has done.
    with pytest.raises(
        UserError, match=r"weights are not finite after step 1 of epoch 1: .*first checkpoint; lower --lr"
    ):
        fit(
            tiny(
                "digits-st",
                out=tmp_path / "run",
                batch_size=2000,
                lr=1e38,
                schedule="multistep",
                weight_decay=1e38,
            )
        )
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("broken", ["model", "average"])
@pytest.mark.parametrize("saved_by", ["steps", "signal", "epoch"])
def test_infinite_weights_leave_the_checkpoint_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_by: str, broken: str
) -> None:
    """Whatever saves: --checkpoint-steps, a signal inside an epoch, or an epoch's end."""
    config = tiny(
        "digits-st", out=tmp_path / "run", average="ema", checkpoint_steps=2 if saved_by == "steps" else 0
    )
    breaks = (1, 2) if saved_by == "epoch" else (1, 0)
    update, kept = Average.update, {}

    def breaking(self: Average, number: int) -> None:
        """The last that a step does: what it leaves is what would be saved."""
        update(self, number)
        if number == 3 * breaks[0] + breaks[1]:
            for file in (config.out / "checkpoints").iterdir():
                kept[file.name] = file.read_bytes()
            weights = self._sources if broken == "model" else self._averaged
            weights[0].data.view(-1)[0] = float("inf")
            if saved_by == "signal":
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Average, "update", breaking)
        with pytest.raises((UserError, Stopped)) as caught:
            fit(config)
    where = f"after step {breaks[1] + 1} of epoch 2"
    assert str(caught.value).startswith(
        f"the weights are not finite {where}: stopped, with the newest checkpoint"
    )
    assert "\n" not in str(caught.value)
    files = {file.name: file.read_bytes() for file in (config.out / "checkpoints").iterdir()}
    assert "last.pt" in files
    assert files == kept
    assert_same_end(resume(config.out), fit(replace(config, out=tmp_path / "whole")))


@pytest.mark.parametrize("average", ["none", "ema", "swa"])
def test_checks_and_evaluation_go_by_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    judged: list[Any] = []
    check = HeldOutCheck.__call__

    def seen(self: HeldOutCheck, epoch: int) -> Any:
        judged.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return check(self, epoch)

    monkeypatch.setattr(HeldOutCheck, "__call__", seen)
    run = fit(tiny("digits-st", out=tmp_path / "run", average=average, swa_start=0.5))
    state = checkpoint.load(run / "checkpoints" / "last.pt")
    expected = state["model" if average == "none" else "average"]
    for found in (judged[-1], load_run(run, device="cpu").model.state_dict()):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    best = load_run(run, which="best", device="cpu")
    assert all(
        torch.equal(value, judged[best.epoch - 1][name]) for name, value in best.model.state_dict().items()
    )
    if average != "none":
        assert any(not torch.equal(state["model"][name], value) for name, value in expected.items())


def test_metrics_behind_the_checkpoint_are_dropped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed between its metrics line and its checkpoint has a line too many, perhaps half of one."""
    config = tiny(out=tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StopError):
            fit(config)
    with (config.out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "ste')
    assert_same_end(resume(config.out), whole)


def test_tensorboard_has_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between the point of epoch 2 and its checkpoint, the resumed run writes that point again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny("digits-st", out=tmp_path / "run", epochs=3, tensorboard=True)
    save = fit_module.Trainer._save

    def stopped(self: Any) -> None:
        if self.epoch == 2:
            raise StopError
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Trainer, "_save", stopped)
        with pytest.raises(StopError):
            fit(config)
    run = resume(config.out)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    for tag in ("images/natural", "images/adversarial_r", "images/adversarial_n"):
        assert [event.step for event in events.Images(tag)] == [1, 2, 3]
    assert [event.value for event in events.Scalars("natural/n")] == pytest.approx(
        [line["natural"]["n"] for line in metrics(run)]
    )


def test_lost_metrics_are_an_error(tmp_path: Path, whole: Path) -> None:
    folder = RunFolder.open(whole)
    trainer = fit_module.Trainer(
        replace(folder, path=tmp_path), few_digits("digits", "train"), torch.device("cpu")
    )
    state, path = checkpoint.load_newest(whole / "checkpoints")
    with pytest.raises(UserError, match=r"metrics\.jsonl has 0 bytes, the checkpoint counts \d+"):
        trainer.restore(state, path)


def test_damaged_newest_checkpoint_costs_one_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: Path
) -> None:
    config = tiny(out=tmp_path / "run", checkpoint_steps=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(StopError):
            fit(config)
    last = config.out / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:-100])
    assert_same_end(resume(config.out), whole)
    assert "last.pt is no readable checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"format": 2, "model": {"weight": torch.zeros(3)}, "epoch": 1}, "Error.s. in loading state_dict"),
        ({"format": 2, "epoch": 1}, "it has no 'model'"),
        ({}, "it has no 'format'"),
        ([1, 2], "list indices must be"),
        ({"format": 2, "model": 7, "epoch": 1}, "Expected state_dict to be dict-like"),
    ],
)
def test_a_readable_checkpoint_of_something_else(
    content: Any, reason: str, tmp_path: Path, whole: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    torch.save(content, run / "checkpoints" / "last.pt")
    message = rf"last\.pt holds no checkpoint of this model: {reason}.*; put back the one"
    for use in (load_run, resume):
        with pytest.raises(UserError, match=message) as caught:
            use(run)
        assert "\n" not in str(caught.value)


def test_more_threads_than_processors(tmp_path: Path) -> None:
    count = os.cpu_count()
    with pytest.raises(UserError, match=f"--threads 100000: expected at most {count}, the processors"):
        fit(tiny(out=tmp_path / "run", threads=100_000))
    assert not (tmp_path / "run").exists()


def test_out_must_be_new_or_empty(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match=f"not empty; continue its run with --resume {whole}"):
        fit(tiny(out=whole))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty; it holds no run"):
        fit(tiny(out=tmp_path))
    # What a kill during the very first write leaves does not count.
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.json.partial").write_text("{")
    fit(tiny("digits-st", out=tmp_path / "young", epochs=1))


def test_torchrun_starts_a_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: Path
) -> None:
    """The command is the same, and the folder it names is not empty any more."""
    config = tiny(out=tmp_path / "run", checkpoint_steps=1)
    again = World(restarts=1)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StopError):
            # Ended before there was anything to go on with.
            fit(config, again)
    assert_same_end(fit(config, again), whole)
    printed = capsys.readouterr().out
    assert printed.count("restarted by torchrun (1 so far): the run in") == 1
    assert f"continuing {config.out} after 1 epoch and 1 step" in printed
    with pytest.raises(UserError, match=r"--lr 0\.5 \(was 0\.05\)"):
        fit(replace(config, lr=0.5), again)


def test_a_run_to_be_started_again_needs_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match=r"--max-restarts without --out: .*name its folder"):
        fit(tiny("digits-st"))
    assert not list(tmp_path.iterdir())


def test_default_folder_is_the_next_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for expected in ("digits-st-seed3", "digits-st-seed3-2", "digits-st-seed3-3"):
        assert fit(tiny("digits-st", seed=3, epochs=1, validate_every=0)) == Path("runs") / expected


def test_no_check_no_best(tmp_path: Path) -> None:
    run = fit(tiny("digits-st", out=tmp_path / "run", epochs=1, validate_every=0))
    assert "natural" not in metrics(run)[0]
    with pytest.raises(UserError, match=r"has no best\.pt"):
        load_run(run, which="best")


def test_check_every_second_epoch_and_after_the_last(tmp_path: Path) -> None:
    run = fit(tiny("digits-st", out=tmp_path / "run", epochs=5, validate_every=2))
    assert [line["epoch"] for line in metrics(run) if "natural" in line] == [2, 4, 5]


def test_resume_refuses_another_configuration(whole: Path) -> None:
    stored = RunFolder.open(whole).config
    with pytest.raises(
        UserError, match=r"--lr 0\.5 \(was 0\.05\), --seed 4 \(was 0\); leave these flags out"
    ):
        resume(whole, replace(stored, lr=0.5, seed=4))


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.json"):
        resume(tmp_path)
    with pytest.raises(UserError, match=r"is no run folder"):
        load_run(tmp_path)


def test_run_without_checkpoint_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    config = tiny(out=tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(StopError):
            fit(config)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_run(config.out)
    assert_same_end(resume(config.out), whole)


# One processor in two computes fp16 by emulation, so it takes the objective with the fewest passes.
@pytest.mark.parametrize(("precision", "preset"), [("bf16", "digits-aatpp"), ("fp16", "digits-st")])
def test_short_precisions_learn_and_keep_float32(precision: str, preset: str, tmp_path: Path) -> None:
    run = fit(tiny(preset, out=tmp_path / "run", precision=precision, epochs=4, channels_last=True))
    lines = metrics(run)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {value.dtype for value in load_run(run, device="cpu").model.parameters()} == {torch.float32}


def test_backend_choice_reaches_the_ops(tmp_path: Path) -> None:
    reference = fit(tiny(out=tmp_path / "reference", backend="reference"))
    auto = fit(tiny(out=tmp_path / "auto"))
    # Same arithmetic in float32, hence the same run up to rounding, on whatever "auto" is here.
    first, second = (metrics(run)[0]["loss"] for run in (reference, auto))
    assert first == pytest.approx(second, rel=1e-4)
    with pytest.raises(UserError, match="cuda"):
        fit(tiny(out=tmp_path / "cuda", backend="cuda"))


def test_a_nan_loss_of_broken_weights_does_not_accuse_the_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights were no longer finite, .* not: lower --lr$"):
        fit(tiny("digits-st", out=tmp_path / "run", lr=1e38, schedule="multistep", weight_decay=1e38))


def test_shortened_gradients_are_told_apart_from_the_loss(tmp_path: Path) -> None:
    line = metrics(fit(tiny("digits-st", out=tmp_path / "run", clip_norm=1e-6)))[0]
    assert line["clipped"] == {"model": 1.0}
    assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)


def test_another_number_of_threads_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tiny("digits-st", out=tmp_path / "run"))
    resume(run)
    assert "CPU threads" not in capsys.readouterr().out
    file = run / "config.json"
    record = json.loads(file.read_text())
    record["hardware"]["threads"] += 1
    file.write_text(json.dumps(record))
    resume(run)
    begun = record["hardware"]["threads"]
    assert f"began with {begun} CPU threads and goes on with {begun - 1}" in capsys.readouterr().out
