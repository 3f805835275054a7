"""When a loop is captured, replayed, captured again or run eagerly. On a GPU: that a replay is the loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGD, ThreeWayPGD, cuda_graph
from robustfast.attacks.cuda_graph import (
    CaptureError,
    GraphedLoop,
    eager_loops,
    loops_are_eager,
    record,
    refuse_waits,
)
from robustfast.models import ThreeWay

Batch = tuple[Tensor, Tensor]


def loop(x_adv: Tensor, peaks: Tensor, x: Tensor, eps: Tensor, *, batch: int) -> None:
    x_adv.copy_(x + eps)
    peaks.fill_(batch)


def buffers(batch: int = 4, eps: float = 0.5, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    x = torch.zeros(batch, 3, dtype=dtype)
    return {"x_adv": x.clone(), "peaks": torch.zeros(2, batch), "x": x, "eps": torch.tensor(eps, dtype=dtype)}


def test_a_loop_is_captured_once_and_replayed(captures: list[Any]) -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    for eps in (0.5, 0.25):
        values = buffers(eps=eps)
        graphed(values, batch=4)
        assert (values["x_adv"] == eps).all()
        assert (values["peaks"] == 4).all()
    assert len(captures) == 1


def test_a_change_of_shape_dtype_or_layout_is_captured_again(captures: list[Any]) -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    graphed(buffers(), batch=4)
    graphed(buffers(batch=3), batch=3)
    graphed(buffers(dtype=torch.float64), batch=4)
    transposed = buffers()
    transposed["x"] = torch.zeros(3, 4).t()
    graphed(transposed, batch=4)
    assert len(captures) == 4
    graphed(buffers(), batch=4)
    assert len(captures) == 4, "the first capture is still there"


def test_autocast_is_captured_apart(captures: list[Any]) -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    graphed(buffers(), batch=4)
    with torch.autocast("cpu", torch.bfloat16):
        graphed(buffers(), batch=4)
    assert len(captures) == 2


def test_only_replaced_weights_are_captured_again(captures: list[Any]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    graphed = GraphedLoop(net, loop, warn=False)
    graphed(buffers(), batch=4)
    with torch.no_grad():
        net[0].weight.add_(1)
    net[1].running_mean.add_(1)
    graphed(buffers(), batch=4)
    assert len(captures) == 1, "updated in place: the graph reads the new values"
    net[0].weight.data = net[0].weight.data.clone()
    graphed(buffers(), batch=4)
    assert len(captures) == 2
    net[1].running_mean = net[1].running_mean.clone()
    graphed(buffers(), batch=4)
    assert len(captures) == 3


def test_old_captures_are_let_go(captures: list[Any]) -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    for size in range(1, 10):
        graphed(buffers(batch=size), batch=size)
    graphed(buffers(batch=9), batch=9)
    assert len(captures) == 9
    graphed(buffers(batch=1), batch=1)
    assert len(captures) == 10


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: object) -> None:
        raise CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", capture)


@pytest.mark.usefixtures("refusing")
def test_what_cannot_be_captured_runs_eagerly_and_says_so_once() -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=True)
    assert graphed.usable()
    values = buffers()
    with pytest.warns(RuntimeWarning, match="runs eagerly, not as a CUDA graph: operation not permitted"):
        graphed(values, batch=4)
    assert (values["x_adv"] == 0.5).all()
    assert not graphed.usable()


@pytest.mark.usefixtures("refusing")
def test_what_cannot_be_captured_is_an_error_where_a_graph_was_asked_for() -> None:
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    with pytest.raises(
        RuntimeError, match="engine 'graph' cannot capture this attack: operation not permitted"
    ):
        graphed(buffers(), batch=4)


def test_a_plain_callable_is_not_captured(captures: list[Any]) -> None:
    with pytest.warns(RuntimeWarning, match="a plain callable, whose weights cannot be watched"):
        GraphedLoop(lambda x: x, loop, warn=True)(buffers(), batch=4)
    with pytest.raises(RuntimeError, match="pass the module itself"):
        GraphedLoop(lambda x: x, loop, warn=False)(buffers(), batch=4)
    assert not captures


@pytest.mark.parametrize("restarts", [1, 3])
def test_an_attack_through_the_graphed_loop_is_the_same_attack(
    net: nn.Module, batch: Batch, captures: list[Any], monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    settings = {"eps": 0.05, "step_size": 0.01, "restarts": restarts, "norm": "l2"}
    monkeypatch.setattr(PGD, "_uses_graph", lambda self, x, graph: True)
    attack = PGD(net, **settings)
    graphed = [attack(*batch), attack(*batch, eps=0.02), attack(*batch, epoch=1)]
    report = attack.report
    monkeypatch.undo()
    attack = PGD(net, **settings)
    assert all(
        torch.equal(ours, eager)
        for ours, eager in zip(
            graphed, [attack(*batch), attack(*batch, eps=0.02), attack(*batch, epoch=1)], strict=True
        )
    )
    assert report == attack.report
    assert len(captures) == 1


def test_a_pool_without_a_graph_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses to capture into a pool whose last graph is gone."""
    seen: list[Any] = []

    def capture(loop: object, first: dict[str, Any], keywords: object, memory: dict[Any, Any]) -> Any:
        seen.append(memory.setdefault(first["x"].device, object()))
        return lambda values: values

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(cuda_graph, "_key", lambda module, first: (first["x"].shape, first["x"].device))
    graphed = GraphedLoop(nn.Linear(3, 3), loop, warn=False)
    graphed(buffers(batch=1), batch=1)
    elsewhere = {name: value.to("meta") for name, value in buffers(batch=1).items()}
    graphed(elsewhere, batch=1)
    for size in range(2, 9):
        graphed({name: value.to("meta") for name, value in buffers(batch=size).items()}, batch=size)
    graphed(buffers(batch=2), batch=2)
    cpu, meta, *more, again = seen
    assert all(pool is meta for pool in more)
    assert again is not cpu


def test_loops_inside_a_larger_graph_are_eager(net: nn.Module, batch: Batch, captures: list[Any]) -> None:
    assert not loops_are_eager(torch.device("cpu"))
    with eager_loops(), eager_loops():
        assert loops_are_eager(torch.device("cpu"))
    assert not loops_are_eager(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), eager_loops():
        raise ZeroDivisionError
    assert not loops_are_eager(torch.device("cpu"))


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("called a synchronizing CUDA operation")


def test_what_waits_is_named_before_a_capture_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with (
        pytest.raises(
            CaptureError, match=r"test_cuda_graph\.py:\d+ waits for the device: raise RuntimeError"
        ),
        refuse_waits(),
    ):
        Waits()(torch.zeros(1))
    with pytest.raises(RuntimeError, match="something else"), refuse_waits():
        raise RuntimeError("something else")
    assert modes == ["error", 1, "error", 1], "the caller's mode comes back"


class Stream:
    device = torch.device("cuda", 1)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Just enough of torch.cuda to record without a GPU; what happened, by name."""
    happened: dict[str, list[Any]] = {"device": [], "captured": [], "ended": [], "stream": []}

    class Capture:
        broken = False

        def __init__(self, graph: object, pool: object, stream: object, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            happened["captured"].append((pool, stream))

        def __enter__(self) -> None:
            pass

        def __exit__(self, *failure: Any) -> None:
            if failure[0] or Capture.broken:
                raise RuntimeError("operation failed due to a previous error during capture")

    def device(device: torch.device) -> Any:
        happened["device"].append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "new pool")
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "before")
    monkeypatch.setattr(torch.cuda, "set_stream", happened["stream"].append)

    def end(index: int, pool: object) -> None:
        happened["ended"].append((index, pool))
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    return happened


def test_a_recording_is_made_on_the_streams_own_device(cuda: dict[str, list[Any]]) -> None:
    stream = Stream()
    assert record(lambda: 7, stream) == ("graph", 7)
    assert record(lambda: 8, stream, "shared") == ("graph", 8)
    assert cuda["captured"] == [("new pool", stream), ("shared", stream)]
    assert cuda["device"] == [Stream.device] * 2
    assert cuda["stream"] == ["before"] * 2
    assert not cuda["ended"]


def test_a_broken_recording_says_what_broke_it_and_leaves_nothing_open(cuda: dict[str, list[Any]]) -> None:
    def run() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be")

    with pytest.raises(CaptureError, match=r"^operation not permitted when stream is capturing$"):
        record(run, Stream(), "shared")
    assert cuda["stream"] == ["before"]
    assert cuda["ended"] == [(1, "shared")], "or torch's allocator waits for its end for ever"


# --- on a GPU


@pytest.fixture
def on_gpu(make_net: Callable[..., nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(16, 3, 8, 8, generator=generator)
    return make_net().cuda(), x.cuda(), torch.randint(0, 5, (16,), generator=generator).cuda()


@pytest.fixture
def deterministic() -> Any:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_graph_is_the_eager_loop(
    on_gpu: tuple[nn.Module, Tensor, Tensor], norm: str, autocast: bool
) -> None:
    net, x, y = on_gpu
    graph, eager = (
        PGD(net, norm=norm, engine=engine, eps=0.1, step_size=0.02) for engine in ("graph", "eager")
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for epoch in range(3):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            # A forward before the attack leaves weight casts in autocast's cache, which a capture must not keep.
            loss = nn.functional.cross_entropy(net(x), y)
            ours, theirs = (attack(x, y, epoch=epoch, eps=0.1 / (epoch + 1)) for attack in (graph, eager))
        assert torch.equal(ours, theirs)
        assert graph.report == eager.report
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_the_three_way_graph_is_the_eager_loop() -> None:
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).cuda()
    x, y = torch.rand(32, 1, 8, 8, device="cuda"), torch.randint(0, 10, (32,), device="cuda")
    graph, eager = (ThreeWayPGD(model, engine=engine, batched=True) for engine in ("graph", "eager"))
    for epoch in range(2):
        ours, theirs = graph(x, y, epoch=epoch), eager(x, y, epoch=epoch)
        assert all(torch.equal(ours[way], theirs[way]) for way in "srn")


@pytest.mark.gpu
def test_a_model_that_reads_a_value_falls_back(on_gpu: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = on_gpu

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * (1.0 if x.sum().item() > 0 else 2.0)

    with pytest.warns(RuntimeWarning, match="runs eagerly, not as a CUDA graph"):
        first = PGD(Reads())(x, y)
    assert torch.allclose(first, PGD(net, engine="eager")(x, y), atol=1e-6)
    with pytest.raises(RuntimeError, match="engine 'graph' cannot capture"):
        PGD(Reads(), engine="graph")(x, y)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_the_host_never_waits_inside_the_attack(
    on_gpu: tuple[nn.Module, Tensor, Tensor], engine: str
) -> None:
    net, x, y = on_gpu
    attack = PGD(net, engine=engine, restarts=2)
    attack(x, y)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attack(x, y)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
def test_a_bad_label_is_an_error_and_the_device_survives(on_gpu: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = on_gpu
    for engine in ("eager", "graph"):
        with pytest.raises(ValueError, match="y has labels from"):
            PGD(net, engine=engine)(x, y + 5)
        with pytest.raises(ValueError, match="x has values from"):
            PGD(net, engine=engine)(x * 255, y)
    assert torch.ones(1, device="cuda").item() == 1


@pytest.mark.gpu
def test_after_a_broken_capture_others_still_work(on_gpu: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = on_gpu
    stream = torch.cuda.Stream()

    def waits() -> Tensor:
        # Not among what `refuse_waits` sees.
        torch.cuda.synchronize()
        return x + 1

    with pytest.raises(CaptureError):
        record(waits, stream)
    torch.cuda.empty_cache()
    assert torch.equal(PGD(net, engine="graph")(x, y), PGD(net, engine="graph")(x, y))


@pytest.mark.gpu
def test_what_waits_is_named_on_a_gpu(on_gpu: tuple[nn.Module, Tensor, Tensor]) -> None:
    _, x, _ = on_gpu
    with (
        pytest.raises(
            CaptureError, match=r"test_cuda_graph\.py:\d+ waits for the device: x\.max\(\)\.item\(\)"
        ),
        refuse_waits(),
    ):
        x.max().item()
    x.max().item()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "graph"])
def test_an_attack_inside_a_callers_capture_is_part_of_it(
    on_gpu: tuple[nn.Module, Tensor, Tensor], engine: str
) -> None:
    net, x, y = on_gpu
    attack, static = PGD(net, engine=engine, random_start=False), x.clone()
    stream = torch.cuda.Stream()
    with cuda_graph.on_stream(stream), eager_loops():
        attack(static, y)
    graph, x_adv = record(lambda: attack(static, y), stream)
    static.copy_(x.flip(0))
    graph.replay()
    assert torch.allclose(x_adv, PGD(net, engine="eager", random_start=False)(x.flip(0), y), atol=1e-6)
