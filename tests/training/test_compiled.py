"""Encoders through torch.compile: the same numbers, no weight gradient in attacks, and each kind compiles once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import shutil
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from tiny_runs import tiny
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs

from robustfast.attacks import PGD, AttackConfig
from robustfast.attacks.compiled import Compiled
from robustfast.data import Batch
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES
from robustfast.training.compiled import compile_encoders
from robustfast.training.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.fixture
def recorder() -> AotEagerAndRecordGraphs:
    """A backend that traces and runs as always, but keeps its graphs and leaves out the slow code generation."""
    return AotEagerAndRecordGraphs()


def three_way() -> ThreeWay:
    torch.manual_seed(2)
    return ThreeWay("digits_cnn", num_classes=10, in_channels=1)


def engine(model: ThreeWay, method: str, how: str) -> Engine:
    config = tiny(f"digits-{method}", engine=how, batch_size=8)
    attack = AttackConfig(eps=0.1, step_size=0.05, steps=2)
    objective = OBJECTIVES[method](model, config.objective, attack, seed=1, engine=how)
    return Engine(objective, config, torch.device("cpu"))


def train(engine: Engine, epochs: int = 2) -> list[dict[str, Tensor]]:
    """Epochs of two whole batches and a smaller last one."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(21, 1, 8, 8, generator=generator), torch.randint(10, (21,), generator=generator)
    terms = []
    for epoch in range(epochs):
        for rows in (slice(0, 8), slice(8, 16), slice(16, 21)):
            engine.objective.begin(epoch, epoch / epochs)
            terms.append(engine.step(Batch(x[rows], y[rows], torch.arange(21)[rows]), lr=0.01))
    return terms


@pytest.mark.parametrize("method", ["at", "trades", "aatpp"])
def test_steps_are_those_of_the_eager_engine_and_nothing_compiles_twice(
    recorder: AotEagerAndRecordGraphs, method: str
) -> None:
    eager, model = engine(three_way(), method, "eager"), three_way()
    compile_encoders(model, backend=recorder)
    compiled = engine(model, method, "compile")
    found, expected = train(compiled), train(eager)
    kinds = len(recorder.graphs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine["loss"], theirs["loss"], rtol=1e-5, atol=1e-6)
    train(compiled, 3)
    assert len(recorder.graphs) == kinds
    # Of two batch sizes: attacks and training passes, and where labels or clean probabilities are wanted, those too.
    # Both encoders share their graphs.
    assert kinds == 2 * {"at": 2, "trades": 3, "aatpp": 3}[method]


def test_the_attack_has_a_graph_without_weight_gradients_and_training_one_with_them(
    recorder: AotEagerAndRecordGraphs,
) -> None:
    model = three_way()
    compile_encoders(model, backend=recorder)
    way = model.way("r")
    x, y = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    attack = PGD(way, engine="compile", steps=3)
    attack(x, y)
    assert masks(recorder) == {(True, False, False)}
    assert len(recorder.fw_graphs) == 1
    nn.functional.cross_entropy(way(x), y).backward()
    assert len(recorder.fw_graphs) == 2
    # The images need no gradient then, so the first convolution computes none.
    assert {mask[1] for mask in masks(recorder, 1)} == {True}
    attack(x, y, epoch=1, eps=0.2, step_size=0.01)
    nn.functional.cross_entropy(way(x), y).backward()
    assert len(recorder.fw_graphs) == 2


def masks(recorder: AotEagerAndRecordGraphs, number: int = 0) -> set[tuple[bool, ...]]:
    """Which gradients the convolutions of a backward graph compute: of input, weight, bias."""
    return {
        tuple(node.args[-1])
        for node in recorder.bw_graphs[number].graph.nodes
        if node.target is torch.ops.aten.convolution_backward.default
    }


def test_the_model_stays_the_same_module(recorder: AotEagerAndRecordGraphs) -> None:
    model = three_way()
    before = dict(model.state_dict())
    parameters, modules = list(model.way("r").parameters()), list(model.named_modules())
    compile_encoders(model, backend=recorder)
    assert list(model.state_dict()) == list(before)
    assert list(model.named_modules()) == modules
    assert all(a is b for a, b in zip(model.way("r").parameters(), parameters, strict=True))
    twin = copy.deepcopy(model)
    twin(torch.rand(2, 1, 8, 8))
    assert not recorder.graphs, "a copy, as averages of the weights are, is not compiled"
    model.eval()(torch.rand(2, 1, 8, 8))
    assert len(recorder.graphs) == 1


def test_more_kinds_than_torch_takes_by_default(recorder: AotEagerAndRecordGraphs) -> None:
    model = three_way()
    compile_encoders(model, backend=recorder)
    model.requires_grad_(False)  # no backward graphs, which take most of the time
    for images in range(1, 11):
        model.way("r")(torch.rand(images, 1, 8, 8))
    assert len(recorder.graphs) == 10


def broken(graph: nn.Module, inputs: Any) -> Any:
    raise NotImplementedError("no code for this\nprocessor")


def test_where_nothing_compiles_all_runs_eagerly_and_one_line_says_why() -> None:
    eager, model = engine(three_way(), "aatpp", "eager"), three_way()
    said: list[str] = []
    compile_encoders(model, say=said.append, backend=broken)
    found = train(engine(model, "aatpp", "compile"))
    assert said == ["encoders run eagerly, not compiled: NotImplementedError: no code for this"]
    for mine, theirs in zip(found, train(eager), strict=True):
        assert torch.equal(mine["loss"], theirs["loss"])


def test_an_old_or_new_python_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(*arguments: object, **keywords: object) -> None:
        raise RuntimeError("Python 3.15+ not yet supported for torch.compile")

    monkeypatch.setattr(torch, "compile", compile)
    said: list[str] = []
    model = three_way()
    compile_encoders(model, say=said.append)
    assert said == [
        "encoders run eagerly, not compiled: RuntimeError: Python 3.15+ not yet supported for torch.compile"
    ]
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_without_a_compiler_the_reason_is_that() -> None:
    said: list[str] = []
    function = Compiled(lambda x: x.sin() + 1, said.append)
    with inductor.patch("cpp.cxx", (None, "/nonexistent/g++")):
        assert torch.equal(function(torch.zeros(3)), torch.ones(3))
    assert len(said) == 1
    assert "No working C++ compiler found" in said[0]
    assert "\n" not in said[0]
    function(torch.zeros(3))
    assert len(said) == 1


def test_an_attack_that_cannot_be_compiled_warns_once_and_is_the_same_attack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    model = three_way()
    x, y = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    attack = PGD(model.way("s"), engine="compile", steps=2)
    with pytest.warns(
        RuntimeWarning, match="attack runs eagerly, not compiled: NotImplementedError"
    ) as warned:
        first, second = attack(x, y), attack(x, y)
    assert len(warned) == 1
    assert torch.equal(first, PGD(model.way("s"), engine="eager", steps=2)(x, y))
    assert torch.equal(first, second)


def test_a_models_own_error_passes_through(recorder: AotEagerAndRecordGraphs) -> None:
    model = ThreeWay("small_cnn", num_classes=10, in_channels=1)
    said: list[str] = []
    compile_encoders(model, say=said.append, backend=recorder)
    with pytest.raises(ValueError, match="small_cnn takes 28x28 images"):
        model.way("r")(torch.rand(2, 1, 8, 8))
    assert not said


class Tiny(nn.Module):
    features = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x.flatten(1)))


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler"
)
def test_generated_code_computes_the_same() -> None:
    torch.manual_seed(0)
    model = ThreeWay(Tiny, num_classes=3).double()
    plain = copy.deepcopy(model)
    said: list[str] = []
    compile_encoders(model, say=said.append)
    x, y = torch.rand(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    gradients = []
    for net in (model, plain):
        x_adv = PGD(net.way("r"), engine="compile" if net is model else "eager", steps=2)(x, y)
        nn.functional.cross_entropy(net.way("r")(x_adv), y).backward()
        gradients.append([parameter.grad for parameter in net.encoder_r.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert not said


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_steps_on_a_gpu(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    losses = []
    for how in ("eager", "compile"):
        torch.manual_seed(2)
        model = ThreeWay("wide_resnet10_1", num_classes=10, in_channels=3).cuda().to(memory_format=layout)
        said: list[str] = []
        if how == "compile":
            compile_encoders(model, say=said.append)
        config = dataclasses.replace(tiny("digits-at", engine=how), device="cuda")
        objective = OBJECTIVES["at"](
            model, OBJECTIVES["at"].Config(), AttackConfig(steps=2), seed=1, engine=how
        )
        runner = Engine(objective, config, torch.device("cuda", 0))
        x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)).cuda()
        batch = Batch(
            x.contiguous(memory_format=layout), torch.arange(16).cuda() % 10, torch.arange(16).cuda()
        )
        losses.append(float(runner.step(batch, lr=0.0)["loss"]))
        assert not said
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
