"""Two encoders side by side: what runs on which stream, who waits for whom, and that nothing comes out otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast import streams
from robustfast.attacks import ThreeWayPGD
from robustfast.attacks.cuda_graph import on_stream, record
from robustfast.models import ThreeWay, three_way
from robustfast.streams import Branch, branch, captured, two_streams

CUDA = torch.device("cuda", 0)


def small() -> ThreeWay:
    torch.manual_seed(0)
    return ThreeWay("digits_cnn", num_classes=10, in_channels=1)


def test_work_forks_in_graphs_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(streams, "Branch", made.append)
    branch(CUDA)
    with captured():
        branch(torch.device("cpu"))
        with two_streams(False):
            branch(CUDA)
        assert not made
        branch(CUDA)
        with captured(), two_streams(False), two_streams(True):
            branch(CUDA)
        branch(CUDA)
    branch(CUDA)
    assert made == [CUDA] * 3


def test_switches_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), captured(), two_streams(False):
        raise ZeroDivisionError
    assert streams.two_streams_wanted()
    assert streams._captures == 0


class FakeStream:
    """Has run what it was given, and all that the streams it waited for had run then."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams without a GPU: what happened, in order."""
    happened: list[str] = []
    current = [FakeStream("trunk", happened)]

    @contextmanager
    def stream(chosen: FakeStream) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    def record_stream(tensor: Tensor, chosen: FakeStream) -> None:
        happened.append(f"{tuple(tensor.shape)} crosses to {chosen.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("side", happened))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    monkeypatch.setattr(streams, "_streams", {})
    monkeypatch.setattr(three_way, "branch", Branch)
    return happened


def watched(model: ThreeWay, log: list[str]) -> ThreeWay:
    for name, encoder in model.encoders().items():

        def note(module: nn.Module, given: Any, name: str = name) -> None:
            log.append(f"{name} on {torch.cuda.current_stream().name}")

        encoder.register_forward_pre_hook(note)
    return model


FORK = "side waits for trunk"
JOIN = "trunk waits for side"
CROSSED = ["(2, 1, 8, 8) crosses to side", "(2, 128) crosses to trunk"]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("rn", [FORK, "r on trunk", "n on side", *CROSSED, JOIN]),
        ("nr", [FORK, "n on side", *CROSSED, "r on trunk", JOIN]),
        ("n", [FORK, "n on side", *CROSSED, JOIN]),
        ("r", ["r on trunk"]),
    ],
)
def test_encoder_n_has_a_stream_of_its_own_forked_before_r_runs(
    log: list[str], which: str, expected: list[str]
) -> None:
    model = watched(small().eval(), log)
    x = torch.rand(2, 1, 8, 8)
    found = model.encode(x, which)
    assert log == expected
    assert list(found) == list(which)
    for name, value in found.items():
        assert torch.equal(value, model.encoders()[name](x))


def test_a_branch_never_runs_on_its_trunk(log: list[str]) -> None:
    trunk = torch.cuda.current_stream()
    streams._streams[CUDA] = trunk  # torch has handed out the same one again
    fork = Branch(CUDA)
    assert fork.stream is not trunk
    assert Branch(CUDA).stream is fork.stream
    assert log == [FORK, FORK]


def test_an_encoder_that_raises_leaves_no_fork_open(log: list[str]) -> None:
    model = small()
    model.encoder_r.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.encode(torch.rand(2, 1, 8, 8))
    assert log == [FORK, JOIN]


def test_each_encoder_gets_its_own_images(log: list[str]) -> None:
    model = watched(small().eval(), log)
    x = torch.rand(5, 1, 8, 8)
    found = model.encode_each({"r": x[:2], "n": x[2:]})
    assert log[0] == FORK, "or r would run before n could begin"
    assert torch.equal(found["r"], model.encoder_r(x[:2]))
    assert torch.equal(found["n"], model.encoder_n(x[2:]))
    with pytest.raises(ValueError, match="encoders 'rx'"):
        model.encode_each({"r": x, "x": x})


@pytest.mark.parametrize("batched", [True, False])
def test_a_forked_attack_is_the_attack(
    log: list[str], batched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = watched(small().eval(), log)
    x, y = torch.rand(4, 1, 8, 8), torch.randint(0, 10, (4,))
    attack = ThreeWayPGD(model, batched=batched, steps=2, eps=0.1)
    forked = attack(x, y)
    assert log.count(FORK) == log.count(JOIN) == (2 if batched else 4)
    open_forks = 0
    for event in log:
        open_forks += (event == FORK) - (event == JOIN)
        assert 0 <= open_forks <= 1
        assert open_forks or "crosses" not in event
    monkeypatch.setattr(three_way, "branch", lambda device: None)
    plain = attack(x, y)
    assert all(torch.equal(forked[way], plain[way]) for way in "srn")


# --- on a GPU


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_two_streams_find_the_bits_of_one(batched: bool, autocast: bool) -> None:
    model = small().to(CUDA).eval()
    x, y = torch.rand(64, 1, 8, 8, device=CUDA), torch.randint(0, 10, (64,), device=CUDA)
    attack = ThreeWayPGD(model, engine="graph", batched=batched)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for epoch in range(3):
            forked = attack(x, y, epoch=epoch)
            with two_streams(False):
                plain = attack(x, y, epoch=epoch)
            assert all(torch.equal(forked[way], plain[way]) for way in "srn")


def training_pass(model: ThreeWay, x: Tensor, y: Tensor, *, graph: bool) -> list[Tensor]:
    """Loss and gradients of two passes, the second of encoder n alone, as the objectives mix them."""

    def run() -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            logits = [*model.ways(x, "srn").values(), *model.ways(x.flip(0), "n").values()]
            loss = torch.stack([nn.functional.cross_entropy(out, y) for out in logits]).sum()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    if not graph:
        return run()
    stream = torch.cuda.Stream(CUDA)
    with captured():
        with on_stream(stream):
            run()
            run()
        for parameter in model.parameters():
            parameter.grad = None
        recording, found = record(run, stream)
    recording.replay()
    return [value.clone() for value in found]


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_a_forked_training_pass_has_the_gradients_of_eager_ones() -> None:
    model = small().to(CUDA).eval()
    x, y = torch.rand(64, 1, 8, 8, device=CUDA), torch.randint(0, 10, (64,), device=CUDA)
    eager = training_pass(model, x, y, graph=False)
    for wanted in (True, False):
        with two_streams(wanted):
            found = training_pass(model, x, y, graph=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, eager, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", [True, False])
def test_the_captured_graph_forks_and_joins(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []
    real = torch.cuda.CUDAGraph

    def kept() -> Any:
        graphs.append(real())
        graphs[-1].enable_debug_mode()
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", kept)
    model = small().to(CUDA).eval()
    x, y = torch.rand(8, 1, 8, 8, device=CUDA), torch.randint(0, 10, (8,), device=CUDA)
    with two_streams(wanted):
        ThreeWayPGD(model, engine="graph", batched=True, steps=2)(x, y)
    (graph,) = graphs
    graph.debug_dump(str(tmp_path / "graph.dot"))
    edges = set(re.findall(r'"([^"]+)"[^\s-]*\s*->\s*"([^"]+)"', (tmp_path / "graph.dot").read_text()))
    assert edges
    forks = [node for node in {a for a, _ in edges} if sum(a == node for a, _ in edges) > 1]
    joins = [node for node in {b for _, b in edges} if sum(b == node for _, b in edges) > 1]
    # Forward and backward of two steps each; an event without work behind it may fall together with another.
    assert (len(forks) >= 2 and len(joins) >= 2) if wanted else not (forks or joins)
