"""What the gradient costs: no weight gradient, eager or compiled, one cast per weight. And that it loses nothing."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs

from robustfast.attacks import PGD
from robustfast.attacks import gradient as gradient_module
from robustfast.attacks.gradient import largest_entry

Batch = tuple[Tensor, Tensor]


def test_eager_computes_no_weight_gradient(net: nn.Module, batch: Batch, record: type[Any]) -> None:
    with record() as calls:
        PGD(net, steps=3, random_start=False)(*batch)
    masks = [args[-1] for args in calls.arguments("aten::convolution_backward")]
    assert masks == [[True, False, False]] * 6
    # A linear layer's weight gradient would be a second product in its backward.
    assert calls.count("aten::addmm") == 3
    assert calls.count("aten::mm") == 3
    assert calls.count("aten::convolution") + calls.count("aten::mkldnn_convolution") == 6


def compiled_masks(recorder: AotEagerAndRecordGraphs) -> list[list[bool]]:
    return [
        node.args[-1]
        for graph in recorder.bw_graphs
        for node in graph.graph.nodes
        if node.target is torch.ops.aten.convolution_backward.default
    ]


def products(recorder: AotEagerAndRecordGraphs) -> int:
    return sum(
        node.target is torch.ops.aten.mm.default for graph in recorder.bw_graphs for node in graph.graph.nodes
    )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> AotEagerAndRecordGraphs:
    """torch.compile that traces and runs as always, but keeps its graphs and leaves out the slow code generation."""
    torch._dynamo.reset()
    recorder = AotEagerAndRecordGraphs()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=recorder))
    return recorder


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning")
def test_the_compiled_backward_computes_no_weight_gradient(
    net: nn.Module, batch: Batch, recorder: AotEagerAndRecordGraphs
) -> None:
    net[0].bias.requires_grad_(False)
    attack = PGD(net, engine="compile")
    compiled = attack(*batch)
    assert compiled_masks(recorder) == [[True, False, False]] * 2
    assert products(recorder) == 1
    assert torch.equal(compiled, PGD(net, engine="eager")(*batch))
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert all(p.grad is None for p in net.parameters())
    # A ramp and another epoch run what is there.
    attack(*batch, epoch=3, eps=0.01, step_size=0.002)
    attack(*batch, eps=torch.linspace(0, 0.1, 8))
    assert len(recorder.fw_graphs) == len(recorder.bw_graphs) == 1


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_compiled_by_its_owner_computes_no_weight_gradient(
    net: nn.Module, batch: Batch, recorder: AotEagerAndRecordGraphs, in_place: bool
) -> None:
    expected = PGD(net)(*batch)
    if in_place:
        net = Wrapped(net)  # on a bare nn.Sequential, compile() in place does nothing
        net.compile(backend=recorder)
    else:
        net = torch.compile(net)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.equal(PGD(net)(*batch), expected)
    with torch.autocast("cpu", torch.bfloat16):
        PGD(net)(*batch)
    assert compiled_masks(recorder) == [[True, False, False]] * 4


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler"
)
def test_the_compiled_engine_equals_the_eager_one() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = torch.rand(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    compiled = PGD(net, engine="compile")(x, y)
    assert torch.allclose(compiled, PGD(net, engine="eager")(x, y), rtol=0, atol=1e-12)
    assert net.training


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_casts_each_weight_once_per_attack(
    net: nn.Module, batch: Batch, record: type[Any], frozen: bool, cache: bool
) -> None:
    net.requires_grad_(not frozen)
    weights = {tuple(p.shape) for layer in (net[0], net[3], net[7]) for p in layer.parameters()}

    def casts(steps: int) -> int:
        with record() as calls, torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            x_adv = PGD(net, steps=steps, random_start=False)(*batch)
            assert torch.is_autocast_cache_enabled() is cache
        assert x_adv.dtype == torch.float32
        return sum(tuple(args[0].shape) in weights for args in calls.arguments("aten::_to_copy"))

    assert casts(1) == casts(4) == 6
    assert all(p.requires_grad is not frozen for p in net.parameters())


def test_an_attack_under_autocast_leaves_the_callers_graph_whole(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        PGD(net, steps=1, restarts=2)(x, y)
        nn.functional.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_graph_taken_before_the_attack_still_reaches_the_weights(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    loss = nn.functional.cross_entropy(net.eval()(x), y)
    PGD(net)(x, y)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def confident() -> tuple[nn.Module, Tensor, Tensor]:
    """Sure of class 0 by 19.4: the other class has probability 4e-9, and float16 ends at 6e-8."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, 2))
    net[1].weight.data = torch.linspace(-0.25, 0.25, 40).reshape(2, 20)
    net[1].bias.data = torch.tensor([22.0, 0.0])
    return net, torch.full((16, 20), 0.5), torch.zeros(16, dtype=torch.int64)


def test_float16_does_not_lose_small_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = confident()

    def lost() -> int:
        attack = PGD(net, steps=1, random_start=False)
        with torch.autocast("cpu", torch.float16):
            attack(x, y)
        assert attack.report.nonfinite_gradient == 0
        return attack.report.zero_gradient

    scaled = lost()
    monkeypatch.setattr(gradient_module, "FLOAT16_SCALE", 1.0)
    unscaled = lost()
    assert (scaled, unscaled) == (0, 16)


def test_a_model_kept_in_float16_is_scaled_too() -> None:
    net, x, y = confident()
    attack = PGD(nn.Sequential(Half(), net.half()), steps=1, random_start=False)
    attack(x, y)
    assert attack.report.zero_gradient == 0


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


@pytest.mark.parametrize(
    "model",
    [
        lambda net: lambda x: net(x).detach(),
        lambda net: lambda x: net(torch.ones_like(x)),
        lambda net: torch.no_grad()(net),
    ],
    ids=["detached", "without x", "no_grad"],
)
def test_a_model_that_does_not_depend_on_the_images(
    net: nn.Module, batch: Batch, model: Callable[[nn.Module], Callable[[Tensor], Tensor]]
) -> None:
    with pytest.raises(ValueError, match="the model's output does not depend on x"):
        PGD(model(net))(*batch)


def test_the_largest_entry_of_each_gradient() -> None:
    grad = torch.zeros(5, 2, 3)
    grad[0, 1, 2] = -3
    grad[1, 0, 0] = 1e-40
    grad[2, 0, 1] = torch.nan
    grad[3, 1, 1] = -torch.inf
    out = torch.empty(5)
    largest_entry(grad, out=out)
    assert out[0] == 3
    assert 0 < out[1] < 1e-39
    assert out[2].isnan()
    assert out[3].isinf()
    assert out[4] == 0
