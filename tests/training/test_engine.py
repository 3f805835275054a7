"""The engine: each phase moves its own parameters and sees those that earlier phases moved."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_runs import tiny
from torch import Tensor, nn

from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.objectives import Phase
from robustfast.training.engine import Engine, NonFiniteLossError

CPU = torch.device("cpu")


class Duel:
    """Two linear maps: the first learns, then the second learns from what the first has become."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(2, 1), nn.Linear(2, 1)
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


def test_fp16_scales_the_loss_and_skips_an_overflow() -> None:
    duel = Duel()
    runner = engine(duel, precision="fp16")
    scale = runner.precision.scaler.get_scale()
    assert scale > 1
    huge = batch()
    huge.x.mul_(10)  # products stay under 1e4 and fit into fp16, their gradients times the scale do not
    before = duel.first.weight.detach().clone()
    runner.step(huge, lr=0.1)
    assert runner.precision.scaler.get_scale() < scale
    assert torch.equal(duel.first.weight, before)
