"""When a step is captured, replayed or run eagerly, and that a replay is the step of its batch."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from fake_graphs import FakeGraph, fake_graphs
from tiny_runs import assert_equal, tiny
from torch import Tensor

from robustfast.attacks.cuda_graph import CaptureError
from robustfast.data import Batch, load
from robustfast.distributed import World
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES, Phase
from robustfast.training import whole_step
from robustfast.training.config import TrainConfig
from robustfast.training.engine import Engine, NonFiniteLossError
from robustfast.training.whole_step import WholeStep, obstacle

CPU = torch.device("cpu")
LR = 2**-8  # exact in float32, as a graph reads it
EPOCHS, FULL = 2, 5  # epochs of five whole batches of eight and one of three


def config(preset: str = "digits-at", **fields: Any) -> TrainConfig:
    base = tiny(preset, batch_size=8, whole_step="graph", device="auto", **fields)
    return dataclasses.replace(base, attack=dataclasses.replace(base.attack, ramp=0.0))


def engine(config: TrainConfig, device: torch.device = CPU, model: str = "digits_cnn") -> Engine:
    torch.manual_seed(3)
    net = ThreeWay(model, num_classes=10, in_channels=1).to(device)
    objective = OBJECTIVES[config.method](net, config.objective, config.attack, seed=5, engine=config.engine)
    return Engine(objective, config, device)


def batches(device: torch.device = CPU, side: int = 8) -> list[Batch]:
    digits = load("digits", "train")
    index = torch.arange(8 * FULL + 3)
    x = torch.nn.functional.interpolate(digits.images[index] / digits.scale, side).to(device)
    y, index = digits.labels[index].to(device), index.to(device)
    cuts = [*range(0, len(index), 8), len(index)]
    return [Batch(x[a:b], y[a:b], index[a:b]) for a, b in pairwise(cuts)]


def train(
    step: Callable[..., dict[str, Tensor]], engine: Engine, given: list[Batch], epochs: int = EPOCHS
) -> list[dict[str, Tensor]]:
    """Terms of every step; the learning rate halves with each epoch and each other step."""
    found, steps = [], epochs * len(given)
    for epoch in range(epochs):
        for number, batch in enumerate(given):
            done = epoch * len(given) + number
            engine.objective.begin(epoch, done / steps)
            torch.manual_seed(done)
            found.append(step(batch, lr=LR / 2 ** (epoch + number % 2)))
    return found


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], list[FakeGraph]]:
    """recorded(engine): a GPU that is none; the graphs recorded, in order."""
    return lambda engine: fake_graphs(monkeypatch)


def assert_equal_runs(
    plain: tuple[Engine, list[dict[str, Tensor]]], graphed: tuple[Engine, list[dict[str, Tensor]]]
) -> None:
    for expected, found in zip(plain[1], graphed[1], strict=True):
        assert list(expected) == list(found)
        for name, value in expected.items():
            assert torch.equal(value, found[name]), name
    expected, found = (run[0].objective.model.state_dict() for run in (plain, graphed))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("preset", ["digits-at", "digits-aatpp", "digits-trades"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_replays_are_the_steps_of_their_batches(recorded: Any, preset: str, optimizer: str) -> None:
    settings = config(preset, optimizer=optimizer, clip_norm=1.0)
    plain, graphed = engine(settings), engine(settings)
    given = batches()
    graphs = recorded(graphed)
    said: list[str] = []
    step = WholeStep(graphed, say=said.append)
    assert_equal_runs((plain, train(plain.step, plain, given)), (graphed, train(step.step, graphed, given)))
    # The draws of the second epoch are others, so it has a graph of its own; the first begins with two eager steps.
    assert [graph.replays for graph in graphs] == [FULL - 2, FULL]
    assert step.captures == EPOCHS
    assert not said


def test_what_a_replay_returns_outlives_the_next(recorded: Any) -> None:
    runner = engine(config())
    recorded(runner)
    found = train(WholeStep(runner).step, runner, batches(), epochs=1)
    losses = [float(terms["loss"]) for terms in found]
    assert len(set(losses)) == len(losses)


def test_steps_of_a_growing_radius_are_not_captured(recorded: Any) -> None:
    settings = config()
    settings = dataclasses.replace(settings, attack=dataclasses.replace(settings.attack, ramp=0.5))
    plain, graphed = engine(settings), engine(settings)
    graphs = recorded(graphed)
    given = batches()
    runs = [train(step, e, given, 4) for step, e in ((plain.step, plain), (WholeStep(graphed).step, graphed))]
    assert_equal_runs((plain, runs[0]), (graphed, runs[1]))
    # Half of four epochs: the third one runs two eager steps first.
    assert [graph.replays for graph in graphs] == [FULL - 2, FULL]


def test_weights_that_move_elsewhere_are_captured_anew(recorded: Any) -> None:
    runner = engine(config())
    graphs = recorded(runner)
    step = WholeStep(runner)
    given = [batches()[0]] * 4
    train(step.step, runner, given, 1)
    weight = runner.objective.model.encoder_r.get_parameter(
        next(name for name, _ in runner.objective.model.encoder_r.named_parameters())
    )
    weight.data = weight.data.clone()
    train(step.step, runner, given, 1)
    assert [graph.replays for graph in graphs] == [2, 2]
    runner.objective.model.encoder_r.eval()
    train(step.step, runner, given, 1)
    assert len(graphs) == 3


POISON = 0.8125


def poison(batch: Batch) -> Batch:
    """The batch with a pixel that has a fragile objective lose."""
    x = batch.x.clone()
    x[0, 0, 0, 0] = POISON
    return batch._replace(x=x)


def fragile(engine: Engine) -> Engine:
    """The loss of a poisoned batch is nan, all else about it is finite, running statistics above all."""
    phases = engine.objective.phases

    def broken(x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        poisoned = (x[0, 0, 0, 0] == POISON).float()
        for phase in phases(x, y, index):
            yield dataclasses.replace(phase, loss=phase.loss + (0 / (1 - poisoned)).detach())

    engine.objective.phases = broken
    return engine


def everything(engine: Engine) -> dict[str, Any]:
    """All that training moves."""
    return {"model": engine.objective.model.state_dict(), **engine.state_dict()}


@pytest.mark.parametrize("then", ["step", "settle", "partial", "epoch"])
@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("digits-st", {"optimizer": "adamw", "precision": "fp16"}),
        ("digits-st", {"optimizer": "sgd"}),
        ("digits-trades", {"optimizer": "adamw"}),
    ],
)
def test_a_loss_that_is_not_finite_is_told_a_step_late_and_nothing_has_moved(
    recorded: Any, then: str, preset: str, fields: dict[str, Any]
) -> None:
    plain, graphed = (fragile(engine(config(preset, **fields))) for _ in range(2))
    graphs = recorded(graphed)
    step = WholeStep(graphed)
    full, *_, partial = batches()
    for runner, take in ((plain, plain.step), (graphed, step.step)):
        train(take, runner, [full] * 4, 1)
    assert step.pending
    assert not torch.isfinite(step.step(poison(full), lr=LR)["loss"]), "whose check is to come"
    with pytest.raises(NonFiniteLossError, match="loss of phase 'model' is nan") as told:
        plain.step(poison(full), lr=LR)
    assert told.value.steps_ago == 0
    given = {"partial": partial}.get(then, full)
    if then == "epoch":
        graphed.objective.begin(1, 0.5)
    with pytest.raises(NonFiniteLossError, match="loss of phase 'model' is nan") as late:
        step.settle() if then == "settle" else step.step(given, lr=LR)
    assert str(late.value) == str(told.value)
    assert late.value.steps_ago == 1
    assert graphs[0].replays == (4 if then == "step" else 3), "the next was launched before this was read"
    assert_equal(everything(graphed), everything(plain), "")
    assert not step.pending
    step.settle()
    # Neither is the worse for it.
    assert_equal_runs(
        (plain, train(plain.step, plain, [full] * 4, 1)),
        (graphed, train(step.step, graphed, [full] * 4, 1)),
    )
    step.settle()
    assert_equal(everything(graphed), everything(plain), "")


def test_a_step_that_is_not_late_raises_its_own_error(recorded: Any) -> None:
    runner = fragile(engine(config("digits-st")))
    graphs = recorded(runner)
    step = WholeStep(runner, late=False)
    given = batches()[0]
    train(step.step, runner, [given] * 4, 1)
    assert not step.pending
    before = copy.deepcopy([*runner.objective.model.parameters()])
    with pytest.raises(NonFiniteLossError, match="loss of phase 'model' is nan") as found:
        step.step(poison(given), lr=LR)
    assert found.value.steps_ago == 0
    assert graphs[0].replays == 3
    assert all(map(torch.equal, runner.objective.model.parameters(), before))


def test_a_replay_is_read_after_the_next_is_launched(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = engine(config("digits-st"))
    graphs = recorded(runner)
    step = WholeStep(runner)
    launched: list[int] = []
    real = whole_step.to_host

    def noted(values: Tensor) -> Callable[[], list[float]]:
        wait = real(values)
        return lambda: (launched.append(graphs[0].replays), wait())[1]

    monkeypatch.setattr(whole_step, "to_host", noted)
    train(step.step, runner, [batches()[0]] * 6, 1)
    assert launched == [2, 3, 4]
    step.settle()
    assert launched == [2, 3, 4, 4]


def test_what_keeps_steps_out_of_a_graph() -> None:
    runner = engine(config())
    assert obstacle(runner) == "CUDA graphs need a GPU, this runs on cpu"
    runner.device = torch.device("cuda", 0)
    assert obstacle(runner) is None
    runner.world = World(1, 2)
    assert "2 processes exchange gradients" in str(obstacle(runner))


def test_without_a_gpu_all_steps_run_eagerly_and_one_line_says_so() -> None:
    plain, graphed = engine(config()), engine(config())
    said: list[str] = []
    step = WholeStep(graphed, say=said.append)
    given = batches()
    assert_equal_runs((plain, train(plain.step, plain, given)), (graphed, train(step.step, graphed, given)))
    assert said == ["whole step runs eagerly, not as a CUDA graph: CUDA graphs need a GPU, this runs on cpu"]


def test_a_step_that_waits_is_not_captured(recorded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, graphed = engine(config()), engine(config())
    graphs = recorded(graphed)
    monkeypatch.setattr(whole_step, "waits", lambda: nullcontext(["model.py:7 waits for the device"]))
    said: list[str] = []
    step = WholeStep(graphed, say=said.append)
    given = batches()
    assert_equal_runs((plain, train(plain.step, plain, given)), (graphed, train(step.step, graphed, given)))
    assert said == ["whole step runs eagerly, not as a CUDA graph: model.py:7 waits for the device"]
    assert not graphs


def test_a_capture_that_fails_leaves_the_step_to_be_run_eagerly(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, graphed = engine(config()), engine(config())
    recorded(graphed)

    def record(run: object, stream: object) -> None:
        raise CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(whole_step, "record", record)
    said: list[str] = []
    step = WholeStep(graphed, say=said.append)
    given = batches()
    assert_equal_runs((plain, train(plain.step, plain, given)), (graphed, train(step.step, graphed, given)))
    assert said == [
        "whole step runs eagerly, not as a CUDA graph: operation not permitted when stream is capturing"
    ]


def test_waits_are_gathered_and_other_warnings_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with warnings.catch_warnings(record=True) as passed:
        warnings.simplefilter("always")
        with whole_step.waits() as found:
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "model.py", 7)
            warnings.warn_explicit("unrelated", UserWarning, "model.py", 8)
        assert found == ["model.py:7 waits for the device"]
    assert [str(warning.message) for warning in passed] == ["unrelated"]
    assert modes == ["warn", 0]


# --- on a GPU

CUDA = torch.device("cuda", 0)


@contextmanager
def same_algorithms() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["digits-st", "digits-at", "digits-trades", "digits-aatpp"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_graph_trains_as_eager_steps_do(preset: str, precision: str, optimizer: str) -> None:
    settings = config(preset, precision=precision, optimizer=optimizer, engine="eager", clip_norm=1.0)
    given = batches(CUDA)
    with same_algorithms():
        plain, graphed = engine(settings, CUDA), engine(settings, CUDA)
        step = WholeStep(graphed)
        runs = train(plain.step, plain, given), train(step.step, graphed, given)
    assert step.captures == EPOCHS
    assert_close_runs((plain, runs[0]), (graphed, runs[1]))


@pytest.mark.gpu
def test_the_graph_draws_the_dropout_of_eager_steps() -> None:
    settings = config("digits-st", engine="eager")
    given = batches(CUDA, side=28)
    with same_algorithms():
        plain, graphed = engine(settings, CUDA, "small_cnn"), engine(settings, CUDA, "small_cnn")
        step = WholeStep(graphed)
        runs = train(plain.step, plain, given), train(step.step, graphed, given)
    assert step.captures == EPOCHS
    assert_close_runs((plain, runs[0]), (graphed, runs[1]))


@pytest.mark.gpu
@pytest.mark.parametrize("inner", ["auto", "graph"])
def test_an_attack_that_is_a_graph_by_itself_runs_inside_one(inner: str) -> None:
    settings = config("digits-aatpp", engine=inner)
    runner = engine(settings, CUDA)
    step = WholeStep(runner)
    assert all(torch.isfinite(terms["loss"]) for terms in train(step.step, runner, batches(CUDA)))
    assert step.captures == EPOCHS


@pytest.mark.gpu
def test_a_replay_does_not_wait_for_the_device() -> None:
    runner = engine(config("digits-aatpp"), CUDA)
    step = WholeStep(runner)
    given = [batches(CUDA)[0]] * 4
    train(step.step, runner, given, 1)
    # Behind work that takes its time, what a replay returns cannot have been computed yet.
    torch.cuda._sleep(2 * 10**8)
    with whole_step.waits() as found:
        step.step(given[0], lr=LR)
        launched = torch.cuda.Event()
        launched.record()
        assert not launched.query()
    assert not found
    step.settle()
    assert launched.query()


@pytest.mark.gpu
def test_an_objective_that_reads_a_value_runs_eagerly() -> None:
    runner = engine(config("digits-st"), CUDA)
    phases = runner.objective.phases

    def reads(x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        assert float(x.max()) <= 1
        yield from phases(x, y, index)

    runner.objective.phases = reads
    said: list[str] = []
    step = WholeStep(runner, say=said.append)
    train(step.step, runner, batches(CUDA))
    assert step.captures == 0
    assert len(said) == 1
    assert "test_whole_step.py" in said[0]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("overtaken", [True, False])
def test_a_poisoned_replay_moves_nothing_and_the_next_one_goes_on(precision: str, overtaken: bool) -> None:
    settings = config("digits-st", precision=precision, engine="eager")
    with same_algorithms():
        plain, graphed = (fragile(engine(settings, CUDA)) for _ in range(2))
        step = WholeStep(graphed)
        given = batches(CUDA)[0]
        for runner, take in ((plain, plain.step), (graphed, step.step)):
            train(take, runner, [given] * 4, 1)
        before = copy.deepcopy([*graphed.objective.model.parameters()])
        step.step(poison(given), lr=LR)
        with pytest.raises(NonFiniteLossError) as late:
            step.step(given, lr=LR) if overtaken else step.settle()
        assert late.value.steps_ago == 1
        assert all(map(torch.equal, graphed.objective.model.parameters(), before))
        with pytest.raises(NonFiniteLossError, match=re.escape(str(late.value))):
            plain.step(poison(given), lr=LR)
        for mine, theirs in zip(
            graphed.objective.model.buffers(), plain.objective.model.buffers(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        runs = [
            train(take, runner, [given] * 3, 1)
            for runner, take in ((plain, plain.step), (graphed, step.step))
        ]
    assert_close_runs((plain, runs[0]), (graphed, runs[1]))


def assert_close_runs(
    plain: tuple[Engine, list[dict[str, Tensor]]], graphed: tuple[Engine, list[dict[str, Tensor]]]
) -> None:
    """The first steps agree to rounding; an attack then amplifies what differs, so the end is compared more loosely."""
    losses = [torch.stack([terms["loss"] for terms in run[1]]) for run in (plain, graphed)]
    torch.testing.assert_close(losses[1][:4], losses[0][:4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
