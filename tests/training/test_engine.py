"""The engine: each phase moves its own parameters and sees those that earlier phases moved."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import pairwise
from threading import Barrier
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adversary import Adversary, Normed, adversary, images
from tiny_runs import assert_equal, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.attacks import AttackConfig
from robustfast.data import Batch
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.objectives import Objective, Phase
from robustfast.training.engine import Engine, NonFiniteLossError

CPU = torch.device("cpu")


class Maps(Network):
    """Modules side by side, read in no way."""

    readings = ""

    def __init__(self, *maps: nn.Module) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)


class Duel(Objective):
    """Two linear maps: the first learns, then the second learns from what the first has become."""

    main_ways = ""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(2, 1), nn.Linear(2, 1)
        super().__init__(Maps(self.first, self.second), None, AttackConfig(), seed=0)
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
            yield Phase("second", self.second(x).float().mean(), {})

    duel = Endless()
    runner = engine(duel, precision="fp16")
    for _ in range(16):
        runner.step(batch(), lr=0.1)
    before = duel.second.weight.detach().clone()
    assert not torch.equal(before, Duel().second.weight)
    with pytest.raises(
        NonFiniteLossError, match=r"its gradient in fp16 is not at any scale: use --precision bf16"
    ):
        runner.step(batch(), lr=0.1)
    assert torch.equal(duel.second.weight, before)


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

    def __enter__(self) -> HostReads:
        tolist = self.tolist = Tensor.tolist

        def counted(tensor: Tensor) -> Any:
            self.count += 1
            return tolist(tensor)

        Tensor.tolist = counted  # type: ignore[method-assign]  # never dispatched
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        Tensor.tolist = self.tolist  # type: ignore[method-assign]
        super().__exit__(*failure)

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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_compute_leaves_out_what_comes_after_a_broken_loss(precision: str) -> None:
    class Broken(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            for phase in super().phases(x, y, index):
                # Its gradient is as before: the loss itself must be looked at.
                broken = phase.loss + (float("inf") if phase.optimizer == "first" else 0.0)
                yield Phase(phase.optimizer, broken, phase.terms)

    duel = Broken()
    before = [parameter.detach().clone() for parameter in duel.model.parameters()]
    runner = engine(duel, precision=precision)
    for scale in runner.scales.values():
        if scale is not None:
            scale.value.fill_(16.0)
    done = runner.compute(batch(), torch.tensor(0.1))
    assert not bool(done.finite)
    for updater in runner.updaters.values():
        assert all(bool(torch.isfinite(gradient).all()) for gradient in updater.gradients)
    for parameter, old in zip(duel.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    with pytest.raises(NonFiniteLossError, match=r"phase 'first' is inf"):
        done.check()


def test_a_learning_rate_on_the_device_is_the_same() -> None:
    number, tensor = Duel(), Duel()
    engine(number).step(batch(), lr=0.1)
    engine(tensor).compute(batch(), torch.tensor(0.1, dtype=torch.float64)).check()
    assert torch.equal(number.second.weight, tensor.second.weight)


# --- several optimizers ---------------------------------------------------------------------------


def weights(objective: Objective) -> dict[str, Tensor]:
    """All parameters, copied, by the names of their networks."""
    parts = {"model": objective.model} | objective.networks()
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, network in parts.items()
        for name, parameter in network.named_parameters()
    }


def three(objective: Adversary, **fields: Any) -> Engine:
    return Engine(objective, tiny(**({"momentum": 0.9, "weight_decay": 0.01} | fields)), CPU)


def test_each_phase_moves_its_own_parameters_and_the_next_sees_them() -> None:
    duel = adversary()
    states = []
    phases = duel.phases

    def watched(*args: Any) -> Iterator[Phase]:
        for phase in phases(*args):
            states.append(weights(duel))
            yield phase
        states.append(weights(duel))

    duel.phases = watched  # type: ignore[method-assign]
    three(duel).step(images(8), lr=0.1)
    moved = [
        {name for name in states[0] if not torch.equal(before[name], after[name])}
        for before, after in pairwise(states)
    ]
    encoder = {name for name in states[0] if name.startswith("model.encoder_r.")}
    head = {name for name in states[0] if name.startswith("model.head.")}
    assert moved == [encoder | head, {n for n in states[0] if n.startswith("discriminator.")}, encoder]


class Pair(Duel):
    """Both maps learn from one gradient, the second in smaller steps."""

    def optimizers(self) -> dict[str, dict[str, Any]]:
        return {"second": {"lr": 0.25, "clip_norm": 0.5}}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        loss = (self.first(x) * self.second(x)).float().mean()
        yield Phase(("first", "second"), loss, {"a": loss.detach()})


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2}, {"precision": "fp16"}])
def test_one_backward_serves_the_optimizers_of_a_phase_each_by_its_own_settings(
    fields: dict[str, Any],
) -> None:
    pair, expected = Pair(), Pair()
    runner = engine(pair, **fields)
    for scale in runner.scales.values():
        if scale is not None:
            scale.value.fill_(256.0)
    terms = runner.step(batch(), lr=0.1)
    first, second = list(expected.first.parameters()), list(expected.second.parameters())
    loss = (expected.first(batch().x) * expected.second(batch().x)).mean()
    found = torch.autograd.grad(loss, first + second)
    length = float(torch.cat([gradient.flatten() for gradient in found[2:]]).norm())
    assert length > 0.5
    sizes = [0.1, 0.1, *(0.25 * 0.1 * 0.5 / length,) * 2]
    close = {"rtol": 1e-2, "atol": 1e-3} if fields.get("precision") else {"rtol": 1e-5, "atol": 1e-6}
    for mine, theirs, gradient, size in zip(
        (*pair.first.parameters(), *pair.second.parameters()), first + second, found, sizes, strict=True
    ):
        assert torch.allclose(mine, theirs - size * gradient, **close)
    assert float(terms["clipped_second"]) == 1
    assert "clipped_first" not in terms


def test_an_overflow_keeps_all_optimizers_of_its_phase_where_they_are() -> None:
    pair = Pair()
    before = weights(pair)
    runner = engine(pair, precision="fp16")
    runner.scales["first"].value.fill_(torch.inf)
    runner.compute(batch(), 0.1)
    assert all(torch.equal(value, before[name]) for name, value in weights(pair).items())
    assert float(runner.scales["second"].value) == 2.0**16


def test_a_broken_loss_names_all_optimizers_of_its_phase() -> None:
    class Broken(Pair):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            for phase in super().phases(x, y, index):
                yield Phase(phase.optimizer, phase.loss * torch.nan, phase.terms)

    with pytest.raises(NonFiniteLossError, match=r"phase 'first \+ second' is nan"):
        engine(Broken()).step(batch(), lr=0.1)


def test_three_optimizers_are_those_of_a_loop_by_hand() -> None:
    duel, by_hand = adversary(), adversary()
    runner = three(duel)
    model, critic = by_hand.model, by_hand.discriminator
    encoder, way = model.encoder_r, model.way("r")
    classify = torch.optim.SGD(way.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    tell = torch.optim.AdamW(critic.parameters(), lr=0.1 * 0.2, weight_decay=0.01)
    fool = torch.optim.SGD(encoder.parameters(), lr=0.5 * 0.2, weight_decay=0.01)

    def natural(x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return F.cross_entropy(way(x), y)

    def apart(x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        scores = (critic(encoder(images).detach()) for images in (x, x_adv))
        return sum(F.softplus(sign * score) for sign, score in zip((-1, 1), scores, strict=True)).mean()

    def fooled(x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return F.softplus(-critic(encoder(x_adv))).mean()

    for number in range(4):
        given = images(8, number)
        terms = runner.step(given, lr=0.2)
        x_adv = by_hand.attack(given.x, given.y, given.index, **by_hand.now())
        losses = []
        for optimizer, loss_of in ((classify, natural), (tell, apart), (fool, fooled)):
            loss = loss_of(given.x, given.y, x_adv)
            optimizer.zero_grad()
            loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
            optimizer.step()
            losses.append(float(loss.detach()))
        assert [float(terms[n]) for n in ("classifier", "discriminator", "encoder")] == pytest.approx(losses)
        assert float(terms["loss"]) == pytest.approx(sum(losses))
    assert_close(weights(duel), weights(by_hand), 1e-6)


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    for name, value in mine.items():
        assert float((value - theirs[name]).abs().max()) <= tolerance, name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_with_several_optimizers_is_bit_equal(precision: str) -> None:
    """Through a file that is read without executing anything, in the middle of a run."""
    whole = adversary(Normed)
    runner = three(whole, precision=precision)
    for number in range(5):
        runner.step(images(8, number), lr=0.1)
        if number == 2:
            file = io.BytesIO()
            torch.save({"model": whole.model.state_dict(), "engine": runner.state_dict()}, file)

    resumed = adversary(Normed)
    with torch.no_grad():
        for parameter in (*resumed.model.parameters(), *resumed.discriminator.parameters()):
            parameter.zero_()
    again = three(resumed, precision=precision)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(state["model"])
    again.load_state_dict(state["engine"])
    for number in (3, 4):
        again.step(images(8, number), lr=0.1)
    assert_equal(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), "model")
    assert_equal(again.state_dict(), runner.state_dict(), "engine")


def test_settings_of_an_optimizer_that_is_not_there() -> None:
    class Typo(Adversary):
        def optimizers(self) -> dict[str, dict[str, Any]]:
            return {"diskriminator": {"lr": 2.0}}

    duel = adversary()
    typo = Typo(duel.model, None, duel.strength, seed=0)
    with pytest.raises(ValueError, match=r"settings for diskriminator, parameters\(\) names classifier"):
        three(typo)


# --- parts of a batch -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "parts"), [(8, 2), (8, 3), (7, 4), (2, 5)])
def test_accumulated_parts_are_the_whole_batch(count: int, parts: int) -> None:
    """Three phases, each after the step of the one before it; attacks draw by image, not by place in the batch."""
    whole, cut = (adversary(dtype=torch.float64) for _ in range(2))
    runners = three(whole, clip_norm=0.5), three(cut, clip_norm=0.5, accumulate=parts)
    for number in range(3):
        given = images(count, number, torch.float64)
        one, other = (runner.step(given, lr=0.2) for runner in runners)
        assert list(one) == list(other)
        assert [float(v) for v in one.values()] == pytest.approx(
            [float(v) for v in other.values()], abs=1e-10
        )
    assert_close(weights(cut), weights(whole), 1e-10)


def test_parts_are_computed_one_after_the_other_and_phase_by_phase() -> None:
    duel = adversary()
    sizes: list[tuple[str, int]] = []
    phases = duel.phases

    def watched(x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        for phase in phases(x, y, index):
            sizes.append((phase.optimizer, len(x)))
            yield phase

    duel.phases = watched  # type: ignore[method-assign]
    three(duel, accumulate=3).step(images(8), lr=0.1)
    assert sizes == [(n, s) for n in ("classifier", "discriminator", "encoder") for s in (2, 3, 3)]


def test_batch_norm_sees_the_parts() -> None:
    """What accumulation changes: statistics of 4 images instead of 8, and twice as many updates of the running ones."""
    whole, cut = adversary(Normed), adversary(Normed)
    three(whole).step(images(8), lr=0.0)
    three(cut, accumulate=2).step(images(8), lr=0.0)
    norms = [duel.model.encoder_r.convolution[1] for duel in (whole, cut)]
    assert [int(norm.num_batches_tracked) for norm in norms] == [4, 8]
    assert not torch.allclose(norms[0].running_var, norms[1].running_var)


def test_parts_that_differ_in_their_phases_are_refused() -> None:
    class Fickle(Duel):
        def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
            loss = self.first(x).mean()
            yield Phase("first", loss, {})
            if int(index[0]) == 0:
                yield Phase("second", self.second(x).mean(), {})

    with pytest.raises(UserError, match=r"'second' in the first, None in another; .* --accumulate 1"):
        engine(Fickle(), accumulate=2).step(batch(), lr=0.1)


# --- bounds on the gradient -----------------------------------------------------------------------


def test_clipping_by_norm_is_of_each_phase_by_itself() -> None:
    duel = Duel()
    free = engine(Duel())
    free.step(batch(), lr=0.0)
    lengths = {
        name: float(torch.cat([g.flatten() for g in updater.gradients]).norm())
        for name, updater in free.updaters.items()
    }
    bound = (lengths["first"] + lengths["second"]) / 2
    runner = engine(duel, clip_norm=bound)
    terms = runner.step(batch(), lr=0.0)
    for name, length in lengths.items():
        found = float(torch.cat([g.flatten() for g in runner.updaters[name].gradients]).norm())
        assert found == pytest.approx(min(length, bound), rel=1e-5)
        assert float(terms[f"clipped_{name}"]) == (length > bound)


def test_clipping_by_value() -> None:
    free, bound = engine(Duel()), engine(Duel(), clip_value=0.5)
    free.step(batch(), lr=0.0)
    terms = bound.step(batch(), lr=0.0)
    for name, updater in free.updaters.items():
        assert any(float(gradient.abs().max()) > 0.5 for gradient in updater.gradients)
        for mine, theirs in zip(bound.updaters[name].gradients, updater.gradients, strict=True):
            assert torch.equal(mine, theirs.clamp(-0.5, 0.5))
    assert list(terms) == ["loss", "a", "b"]


def test_fp16_gradients_are_clipped_at_their_own_size() -> None:
    """After the scale is taken out of them: the same step as in float32 but for rounding."""
    half, full = Duel(), Duel()
    runner = engine(half, precision="fp16", clip_norm=0.5)
    for scale in runner.scales.values():
        scale.value.fill_(256.0)
    runner.step(batch(), lr=0.1)
    engine(full, clip_norm=0.5).step(batch(), lr=0.1)
    assert float((half.first.weight - Duel().first.weight).detach().norm()) > 0.01
    assert torch.allclose(half.first.weight, full.first.weight, atol=1e-3)


# --- several processes ----------------------------------------------------------------------------


class Thread(World):
    """A world whose processes are threads: what it sends is that of `World`, how it travels is not."""

    def __init__(self, rank: int, barrier: Barrier, messages: list[Tensor]) -> None:
        super().__init__(rank, barrier.parties)
        self.meeting, self.messages = barrier, messages

    def _summed(self, message: Tensor) -> Tensor:
        self.messages[self.rank] = message
        self.meeting.wait()
        total = torch.stack(self.messages).sum(0)
        self.meeting.wait()
        return total


def in_processes(count: int, work: Callable[[World], Any]) -> list[Any]:
    """What `work` returns, or raises, in each of so many processes."""
    barrier, messages = Barrier(count, timeout=60), [torch.empty(0)] * count

    def one(rank: int) -> Any:
        torch.set_num_threads(1)
        try:
            return work(Thread(rank, barrier, messages))
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def part_of(given: Batch, world: World) -> Batch:
    rows = world.part(len(given.y))
    x, y, index = (value[rows.start : rows.stop] for value in given[:3])
    return Batch(x, y, index, len(rows) / len(given.y))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_are_the_whole_batch(processes: int) -> None:
    def train(duel: Adversary, world: World, **fields: Any) -> list[float]:
        config = tiny(momentum=0.9, weight_decay=0.01, clip_norm=0.5, **fields)
        runner = Engine(duel, config, CPU, world)
        losses = []
        for number in range(3):
            given = part_of(images(8, number, torch.float64), world)
            losses.append(float(runner.step(given, lr=0.2)["loss"]) * given.share)
        return losses

    alone = adversary(dtype=torch.float64)
    expected = train(alone, World())
    duels = [adversary(dtype=torch.float64) for _ in range(processes)]
    losses = in_processes(processes, lambda world: train(duels[world.rank], world, accumulate=2))
    assert [sum(step) for step in zip(*losses, strict=True)] == pytest.approx(expected, abs=1e-10)
    for duel in duels:
        assert_close(weights(duel), weights(alone), 1e-10)
        assert_equal(weights(duel), weights(duels[0]), "between processes")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_that_breaks_in_one_process_stops_all(precision: str) -> None:
    def train(world: World) -> None:
        given = batch()
        if world.rank == 1:
            given.x[0, 0] = float("nan")
        duel = duels[world.rank]
        Engine(duel, tiny(precision=precision), CPU, world).step(given._replace(share=0.5), lr=0.1)

    duels = [Duel(), Duel()]
    errors = in_processes(2, train)
    assert all(isinstance(error, NonFiniteLossError) for error in errors)
    assert "not finite in another process" in str(errors[0])
    assert "phase 'first' is nan" in str(errors[1])
    for duel in duels:
        assert_equal(weights(duel), weights(Duel()), "weights")


def test_fp16_overflow_in_one_process_is_skipped_in_all() -> None:
    def train(world: World) -> list[float]:
        runner = Engine(duels[world.rank], tiny(precision="fp16"), CPU, world)
        given = overflowing() if world.rank else batch()
        runner.step(given._replace(x=given.x / (1 if world.rank else 100), share=0.5), lr=0.1)
        return [float(scale.value) for scale in runner.scales.values()]

    duels = [Duel(), Duel()]
    assert in_processes(2, train) == [[2.0**15, 2.0**15]] * 2
    for duel in duels:
        assert_equal(weights(duel), weights(Duel()), "weights")


@pytest.mark.parametrize("batch_norm", ["local", "sync"])
def test_local_statistics_are_averaged_after_each_step(batch_norm: str) -> None:
    """With `sync` they agree by themselves, once the model's batch norms are replaced."""

    def train(world: World) -> dict[str, Tensor]:
        duel = adversary(Normed)
        given = part_of(images(8), world)
        Engine(duel, tiny(batch_norm=batch_norm), CPU, world).step(given, lr=0.1)
        return {
            name: b for name, b in duel.model.named_buffers() if "encoder_r" in name and "running" in name
        }

    one, other = in_processes(2, train)
    same = all(torch.equal(one[name], other[name]) for name in one)
    assert same == (batch_norm == "local")
