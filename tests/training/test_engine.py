"""The engine: each phase moves its own parameters and sees those that earlier phases moved."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_runs import assert_equal, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.attacks import AttackConfig
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.objectives import Objective, Phase
from robustfast.training.engine import Engine, NonFiniteLossError

CPU = torch.device("cpu")


class Duel(Objective):
    """Two linear maps: the first learns, then the second learns from what the first has become."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(2, 1), nn.Linear(2, 1)
        super().__init__(nn.ModuleList([self.first, self.second]), None, AttackConfig(), seed=0)
        for parameter in (*self.first.parameters(), *self.second.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.seen: list[Tensor] = []

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"first": list(self.first.parameters()), "second": list(self.second.parameters())}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        loss = (self.first(x) * self.second(x)).float().mean()
        yield Phase("first", loss, {"a": loss.detach()})
        self.seen.append(self.first.weight.detach().clone())
        loss = (self.first(x) * self.second(x)).float().mean()
        yield Phase("second", loss, {"b": loss.detach()})


def batch() -> Batch:
    return Batch(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.zeros(2, dtype=torch.int64), torch.arange(2))


def engine(objective: Any, **fields: Any) -> Engine:
    return Engine(objective, tiny(momentum=0.0, weight_decay=0.0, **fields), CPU)


def test_phases_in_turn() -> None:
    duel, expected = Duel(), Duel()
    terms = engine(duel).step(batch(), lr=0.1)

    first, second = expected.first, expected.second
    loss = (first(batch().x) * second(batch().x)).mean()
    for parameter, gradient in zip(
        first.parameters(), torch.autograd.grad(loss, list(first.parameters())), strict=True
    ):
        parameter.data -= 0.1 * gradient
    assert torch.allclose(duel.seen[0], first.weight, rtol=1e-6)
    later = (first(batch().x) * second(batch().x)).mean()
    for parameter, gradient in zip(
        second.parameters(), torch.autograd.grad(later, list(second.parameters())), strict=True
    ):
        parameter.data -= 0.1 * gradient
    for mine, theirs in zip(
        (*duel.first.parameters(), *duel.second.parameters()),
        (*first.parameters(), *second.parameters()),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, rtol=1e-6)
    assert list(terms) == ["loss", "a", "b"]
    assert float(terms["loss"]) == pytest.approx(float((loss + later).detach()))


def test_a_phase_leaves_the_gradients_of_others_alone() -> None:
    duel = Duel()
    gradients: list[Any] = []
    phases = duel.phases

    def watched(*args: Any) -> Iterator[Phase]:
        for phase in phases(*args):
            yield phase
            gradients.append((duel.first.weight.grad, duel.second.weight.grad))

    duel.phases = watched  # type: ignore[method-assign]
    engine(duel).step(batch(), lr=0.1)
    (first, second), (first_later, second_later) = gradients
    assert first is not None
    assert second is None
    assert first_later is first  # not accumulated into by the second phase
    assert second_later is not None


def test_gradients_do_not_pile_up() -> None:
    duel = Duel()
    runner = engine(duel)
    runner.step(batch(), lr=0.0)
    once = duel.first.weight.grad.clone()
    runner.step(batch(), lr=0.0)
    assert torch.equal(duel.first.weight.grad, once)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_moves_nothing(value: float) -> None:
    duel = Duel()
    poisoned = batch()
    poisoned.x[0, 0] = value
    before = [parameter.detach().clone() for parameter in duel.first.parameters()]
    with pytest.raises(NonFiniteLossError, match="phase 'first'"):
        engine(duel).step(poisoned, lr=0.1)
    for parameter, old in zip(duel.first.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_losses_are_float32() -> None:
    class Short(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            yield Phase("first", self.first(x).mean().bfloat16(), {})

    with pytest.raises(TypeError, match=r"loss is torch\.bfloat16, expected float32"):
        engine(Short()).step(batch(), lr=0.1)


def test_unknown_optimizer() -> None:
    class Lost(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            yield Phase("frist", self.first(x).mean(), {})

    with pytest.raises(UserError, match="unknown optimizer 'frist'; did you mean 'first'"):
        engine(Lost()).step(batch(), lr=0.1)


def test_state_comes_back() -> None:
    duel, copy = Duel(), Duel()
    original = Engine(duel, tiny(), CPU)
    original.step(batch(), lr=0.1)
    restored = Engine(copy, tiny(), CPU)
    for mine, theirs in zip(copy.parameters().values(), duel.parameters().values(), strict=True):
        for parameter, source in zip(mine, theirs, strict=True):
            parameter.data.copy_(source)
    restored.load_state_dict(deepcopy(original.state_dict()))
    original.step(batch(), lr=0.1)
    restored.step(batch(), lr=0.1)
    assert torch.equal(copy.second.weight, duel.second.weight)


def overflowing() -> Batch:
    """Products stay under 1e4 and fit into fp16, their gradients times the first scale do not."""
    huge = batch()
    huge.x.mul_(10)
    return huge


def test_fp16_halves_the_scale_once_for_each_overflow_and_moves_nothing() -> None:
    duel = Duel()
    runner = engine(duel, precision="fp16")
    before = [parameter.detach().clone() for parameter in duel.model.parameters()]
    runner.step(overflowing(), lr=0.1)
    assert [float(scale.value) for scale in runner.scales.values()] == [2.0**15, 2.0**15]
    for parameter, old in zip(duel.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_fp16_overflow_of_one_phase_leaves_the_others_alone() -> None:
    class Uneven(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            for number, phase in enumerate(super().phases(x, y, index)):
                # The gradient of a thousandth passes where that of the whole overflows.
                yield Phase(phase.optimizer, phase.loss * (1.0 if number == 0 else 1e-3), phase.terms)

    duel = Uneven()
    runner = engine(duel, precision="fp16")
    first, second = duel.first.weight.detach().clone(), duel.second.weight.detach().clone()
    runner.step(overflowing(), lr=0.1)
    assert float(runner.scales["first"].value) == 2.0**15
    assert float(runner.scales["second"].value) == 2.0**16
    assert torch.equal(duel.first.weight, first)
    assert not torch.equal(duel.second.weight, second)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fp16_first_step_that_is_skipped_leaves_no_trace_in_the_optimizer(optimizer: str) -> None:
    skipped, fresh = Duel(), Duel()
    runners = [Engine(duel, tiny(optimizer=optimizer, precision="fp16"), CPU) for duel in (skipped, fresh)]
    runners[0].step(overflowing(), lr=0.1)
    for runner in runners:
        for scale in runner.scales.values():
            scale.value.fill_(1024.0)
        runner.step(batch(), lr=0.1)
    assert torch.equal(skipped.first.weight, fresh.first.weight)
    assert torch.equal(skipped.second.weight, fresh.second.weight)


def test_fp16_that_no_scale_can_help_is_said() -> None:
    class Endless(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            # 1 + 0, and the gradient of sqrt at 0 is infinite.
            yield Phase("first", 1 + (self.first(x).float().sum() * 0).sqrt(), {})

    runner = engine(Endless(), precision="fp16")
    for _ in range(16):
        runner.step(batch(), lr=0.1)
    with pytest.raises(
        NonFiniteLossError, match=r"its gradient in fp16 is not at any scale: use --precision bf16"
    ):
        runner.step(batch(), lr=0.1)


def test_fp16_state_comes_back() -> None:
    original, restored = engine(Duel(), precision="fp16"), engine(Duel(), precision="fp16")
    for _ in range(6):
        original.step(batch(), lr=0.1)
    state = deepcopy(original.state_dict())
    assert float(state["scales"]["first"]["value"]) < 2.0**16
    assert int(state["scales"]["first"]["good"]) > 0
    restored.load_state_dict(state)
    assert_equal(restored.state_dict(), state, "engine")


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, which on a GPU is to wait for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_compute_reads_nothing_on_the_host(precision: str, optimizer: str) -> None:
    runner = engine(Duel(), precision=precision, optimizer=optimizer, clip_norm=0.5, accumulate=2)
    with HostReads() as reads:
        done = runner.compute(batch(), 0.1)
        assert reads.count == 0
        done.check()
        assert reads.count == 1


def test_compute_leaves_out_what_comes_after_a_broken_loss() -> None:
    class Broken(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            for phase in super().phases(x, y, index):
                yield Phase(phase.optimizer, phase.loss / (phase.optimizer == "second"), phase.terms)

    duel = Broken()
    before = [parameter.detach().clone() for parameter in duel.model.parameters()]
    done = engine(duel).compute(batch(), torch.tensor(0.1))
    assert not bool(done.finite)
    for parameter, old in zip(duel.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    with pytest.raises(NonFiniteLossError, match=r"phase 'first' is -?inf"):
        done.check()


def test_a_learning_rate_on_the_device_is_the_same() -> None:
    number, tensor = Duel(), Duel()
    engine(number).step(batch(), lr=0.1)
    engine(tensor).compute(batch(), torch.tensor(0.1, dtype=torch.float64)).check()
    assert torch.equal(number.second.weight, tensor.second.weight)
