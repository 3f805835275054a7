"""What APGD promises beside its path: schedules, passes, kernels, batches, early stopping, few classes, dead ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import APGD, APGDT, Attack
from robustfast.attacks import apgd as module
from robustfast.attacks.apgd_schedule import phases, windows
from robustfast.attacks.attack import GradientLog
from robustfast.attacks.cuda_graph import eager_loops

EPS = {"linf": 0.008, "l2": 0.1, "l1": 0.3}
NORMS = list(EPS)
Problem = tuple[nn.Module, Tensor, Tensor]


class RowByRow(nn.Module):
    """Images [B, 3, 8, 8] -> logits [B, 5], every sum over one sample in one order, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(192, 12, generator=generator, dtype=torch.float64) * 0.2)
        self.last = nn.Parameter(torch.randn(12, 5, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.tanh(row.flatten() @ self.first) @ self.last for row in x - 0.5])


def images(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def problem(make_net: Callable[..., nn.Module]) -> Problem:
    """A network, twelve images and the classes it gives them, but for one that is misclassified."""
    net, x = make_net(torch.float64).eval(), images(12)
    with torch.no_grad():
        net[7].bias -= net(x).mean(0)  # so that every class is somebody's
    y = net(x).argmax(1)
    y[4] = (y[4] + 1) % 5
    return net, x, y


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1) != y


def test_checks_come_when_the_authors_code_has_them() -> None:
    def at(steps: int, norm: str = "linf") -> list[int]:
        return [step + 1 for step, window in enumerate(windows(steps, norm)) if window]

    assert at(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert at(50) == [11, 21, 30, 38, 45]
    assert at(40) == [8, 15, 21, 26, 30, 33, 35, 37, 39]
    assert at(20) == [4, 7, 9, *range(10, 21)]
    assert at(10) == list(range(2, 11))
    assert at(100, "l2") == at(100)
    assert at(30, "l1") == list(range(1, 31))
    assert at(60, "l1") == list(range(2, 61, 2))
    found = windows(100, "linf")
    assert [found[step - 1] for step in at(100)] == [22, 19, 16, 13, 10, 7, 6, 6]


def test_the_l1_ball_shrinks_as_autoattack_has_it() -> None:
    assert phases(100, "l1") == [(3, 30), (2, 30), (1, 40)]
    assert phases(10, "l1") == [(3, 3), (2, 3), (1, 4)]
    assert phases(20, "l2") == [(1, 20)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_few_steps_are_steps_too(problem: Problem, norm: str, steps: int) -> None:
    net, x, y = problem
    for attack in (APGD, APGDT):
        found = attack(net, eps=EPS[norm], norm=norm, steps=steps)(x, y)
        order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
        assert ((found - x).flatten(1).norm(order, dim=1) <= EPS[norm] + 1e-9).all()
        assert torch.equal(found[4], x[4])


@pytest.mark.parametrize(("norm", "eot"), [("linf", 1), ("l2", 3), ("l1", 1), ("l1", 2)])
def test_a_run_takes_no_gradient_more_than_its_steps_and_its_start(
    problem: Problem, norm: str, eot: int
) -> None:
    net, x, y = problem
    passes: list[bool] = []
    net.register_forward_hook(lambda *_: passes.append(_[2].requires_grad))
    APGD(net, eps=EPS[norm], norm=norm, steps=11, eot=eot, returns="max_loss")(x, y)
    assert passes == [True] * (eot * (11 + (3 if norm == "l1" else 1)))
    passes.clear()
    APGD(net, eps=EPS[norm], norm=norm, steps=11, eot=eot)(x, y)
    assert passes.count(False) == 1, "the clean images, to leave the misclassified alone"
    assert passes.count(True) == eot * (11 + (3 if norm == "l1" else 1))


def test_eot_averages_gradients_and_takes_the_last_loss() -> None:
    class Drawn(nn.Module):
        """Slopes that change from call to call: the mean of three is not any of them."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.weight = nn.Parameter(
                torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0)).double()
            )

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x @ self.weight[self.calls % 3]

    drawn = Drawn()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])

    def margin(logits: Tensor, target: Tensor) -> Tensor:  # linear, so that the mean slope is known
        return logits.sum(1) - 3 * logits.gather(1, target[:, None]).squeeze(1)

    attack = APGD(drawn, eps=0.1, steps=1, eot=3, loss=margin, returns="max_loss")
    found = attack(x, y, start=x)
    mean = drawn.weight.detach().mean(0)
    slope = mean.sum(1) - 3 * mean.t()[y]
    ahead = (x + 0.1 * slope.sign()).clamp(0, 1)
    last = drawn.weight.detach()[drawn.calls % 3]
    better = margin(ahead @ last, y) > margin(x @ last, y)
    assert torch.allclose(found, torch.where(better[:, None], ahead, x), atol=1e-15)
    assert better.any()


# Views, and a number of the host's that becomes a tensor there.
NO_KERNELS = {"aten::detach", "aten::unbind.int", "aten::select.int", "aten::view", "aten::scalar_tensor"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [APGD, APGDT])
def test_an_iteration_is_three_kernels_beside_the_model_and_its_loss(
    problem: Problem, record: Any, monkeypatch: pytest.MonkeyPatch, norm: str, attack: type[APGD]
) -> None:
    net, x, y = problem

    def as_on_cuda(grad: Tensor, *, out: Tensor) -> None:
        # On a CPU `largest_entry` is four vectorised ops instead, which its comment gives the reason for.
        torch.linalg.vector_norm(grad, torch.inf, dim=tuple(range(1, grad.dim())), out=out)

    monkeypatch.setattr(module, "largest_entry", as_on_cuda)
    x_adv, goal = x.clone(), y if attack is APGD else torch.stack((y, (y + 1) % 5), 1)

    def kernels(call: Callable[[], object]) -> dict[str, int]:
        with record() as seen:
            call()
        names = [name for name, _ in seen.calls if name not in NO_KERNELS]
        return {name: names.count(name) for name in names}

    def block(steps: int) -> dict[str, int]:
        one = attack(net, eps=EPS[norm], norm=norm, steps=steps)
        one._log = GradientLog(len(x), x.device)
        part = {"x": x, "y": y, "goal": goal}
        with one._gradient.session(x.device):
            state = one._begin(part, x_adv, torch.full((12,), EPS[norm], dtype=x.dtype), torch.arange(12))
            schedule = one._schedule(steps, x)
            peaks = x.new_empty(steps, 12)
            return kernels(lambda: one._climb(**state, **schedule, peaks=peaks))

    few, many = block(10), block(30)
    one = attack(net, eps=EPS[norm], norm=norm)
    with one._gradient.session(x.device):
        inside = kernels(lambda: one._gradient.evaluate(x, goal))
    extra = {name: (many[name] - few.get(name, 0)) / 20 - inside.get(name, 0) for name in many}
    extra = {name: count for name, count in extra.items() if count}
    assert extra == {
        "robustfast::apgd_step": 1,
        "robustfast::apgd_track": 1,
        "aten::linalg_vector_norm.out": 1,
    }


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [APGD, APGDT])
def test_batches_of_1_17_and_100_give_the_same_bits(attack: type[APGD], norm: str, early_stop: bool) -> None:
    net, x = RowByRow(), images(100)
    y = net(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    eps = {"linf": 0.02, "l2": 0.15, "l1": 0.8}[norm]
    settings = {"eps": eps, "norm": norm, "steps": 7, "early_stop": early_stop}
    if attack is APGDT:
        settings |= {"n_target_classes": 2, "steps": 4}
    index = torch.arange(100)
    whole = attack(net, **settings)(x, y, index)
    won = fooled(net, whole, y)
    assert 14 < won.sum() < 100, "the clean ones, and some more"
    one = attack(net, **settings)
    parts = [one(*(t[first : first + 17] for t in (x, y, index))) for first in range(0, 100, 17)]
    assert torch.equal(torch.cat(parts), whole)
    singles = [one(x[k : k + 1], y[k : k + 1], index[k : k + 1]) for k in range(0, 100, 5)]
    assert torch.equal(torch.cat(singles), whole[::5])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [APGD, APGDT])
def test_early_stop_fools_the_same_samples_with_fewer_passes(
    problem: Problem, attack: type[APGD], norm: str
) -> None:
    net, x, y = problem
    rows: list[int] = []
    net.register_forward_hook(lambda *_: rows.append(len(_[1][0])))
    settings = {"eps": EPS[norm], "norm": norm, "steps": 23}
    whole = attack(net, **settings)(x, y)
    all_rows = sum(rows)
    rows.clear()
    early = attack(net, **settings, early_stop=True)(x, y)
    assert sum(rows) < all_rows
    won = fooled(net, whole, y)
    assert 1 < won.sum() < 12
    assert torch.equal(fooled(net, early, y), won)
    assert torch.equal(early[~won], x[~won])
    assert torch.equal(early[4], x[4])
    assert not torch.equal(early, whole), "whoever stops has an earlier point"


@pytest.mark.parametrize("returns", ["success_only", "max_loss"])
def test_inside_a_larger_graph_early_stop_waits_for_nobody(problem: Problem, returns: str) -> None:
    net, x, y = problem
    attack = APGD(net, eps=0.008, steps=17, early_stop=True, returns=returns, restarts=2)
    expected = attack(x, y)
    with eager_loops():
        assert torch.equal(attack(x, y), expected)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("early_stop", [False, True])
def test_one_capture_serves_all_blocks_of_a_size(
    problem: Problem, captures: list[Any], monkeypatch: pytest.MonkeyPatch, norm: str, early_stop: bool
) -> None:
    net, x, y = problem
    settings = {"eps": EPS[norm], "norm": norm, "steps": 20, "early_stop": early_stop}
    eager = APGD(net, **settings)
    expected, report = eager(x, y), eager.report
    monkeypatch.setattr(Attack, "_uses_graph", lambda self, x, graph: True)
    attack = APGD(net, **settings)
    found = attack(x, y)
    # The network's own sums may change with the size of the batch, which is padded here.
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert attack.report == report
    assert not captures or max(captures) == (12, 3, 8, 8)
    # 12, 6, 3 and 2 images; under l1 the balls before the last have blocks of their own length.
    assert 1 <= len(captures) <= (5 if early_stop else 2)
    first = len(captures)
    assert torch.equal(attack(x, y), found)
    assert len(captures) == first


def test_few_classes_work_or_name_the_loss_that_does(make_net: Callable[..., nn.Module]) -> None:
    x = images(6)
    for classes in (2, 3):
        net = nn.Sequential(make_net(torch.float64, seed=classes).eval()[:7], nn.Linear(54, classes).double())
        with torch.no_grad():
            net[1].bias -= net(x).mean(0)
        y = net(x).argmax(1)
        runs: list[int] = []
        one = APGDT(net, eps=0.1, steps=5, loss="margin")
        once = one._once
        one._once = lambda *given, once=once, runs=runs: (runs.append(1), once(*given))[1]
        found = one(x, y)
        assert fooled(net, found, y).any()
        assert len(runs) <= classes - 1, "one target for each other class"
        with pytest.raises(ValueError, match=f"the model returned {classes}; use loss='margin'"):
            APGDT(net, eps=0.1, steps=5)(x, y)
    two = nn.Sequential(make_net(torch.float64).eval()[:7], nn.Linear(54, 2).double())
    with pytest.raises(ValueError, match="'margin'"):
        APGD(two, eps=0.1, steps=5, loss="dlr")(x, two(x).argmax(1))
    assert APGD(net, eps=0.1, steps=5, loss="dlr")(x, y).isfinite().all()


def test_targets_are_the_likeliest_other_classes(problem: Problem) -> None:
    net, x, y = problem
    one = APGDT(net, n_target_classes=3)
    goals = [goal for _, goal in one._goals(x, y, net(x))]
    assert all(torch.equal(goal[:, 0], y) for goal in goals)
    order = net(x).argsort(1, descending=True)
    right = order[:, 0] == y
    assert torch.equal(torch.stack([goal[:, 1] for goal in goals], 1)[right], order[right, 1:4])
    assert not any((goal[:, 1] == y).any() for goal in goals)


class Partly(nn.Module):
    """Logits of a linear model; nan for sample 1, the same for all classes for sample 2, flat for sample 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 5, generator=torch.Generator().manual_seed(0)).double())

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.weight
        rows = torch.arange(len(x))[:, None]
        logits = logits * torch.where(rows == 1, torch.nan, 1.0)
        logits = torch.where(rows == 2, 0 * logits, logits)
        return torch.where(rows == 3, torch.arange(5.0) + 0 * logits, logits)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_dead_and_broken_gradients_are_counted_and_harm_nobody_else(norm: str, loss: str) -> None:
    net, x = Partly(), images(5)
    y = net(x).argmax(1)
    attack = APGD(net, eps=EPS[norm], norm=norm, steps=6, loss=loss, returns="max_loss")
    found = attack(x, y)
    assert found.isfinite().all()
    report = attack.report
    assert report.samples == 5
    assert report.nonfinite_gradient == 1
    assert report.zero_gradient >= 2
    values = nn.functional.cross_entropy(net(found), y, reduction="none")
    before = nn.functional.cross_entropy(net(x), y, reduction="none")
    assert (values[[0, 4]] > before[[0, 4]] + 0.1).all()
    assert torch.equal(found[1], x[1]), "a nan is never the highest loss"


def test_constant_logits_move_nothing_but_the_start() -> None:
    x, y = images(3), torch.tensor([0, 0, 0])
    attack = APGD(lambda x: 0 * x.flatten(1)[:, :5], eps=0.1, steps=4)
    assert torch.equal(attack(x, y), x)
    assert attack.report.zero_gradient == 3


def test_restarts_take_whom_no_run_has_won() -> None:
    net, x = RowByRow(), images(30)
    y = net(x).argmax(1)
    settings = {"eps": 0.01, "steps": 2}
    one, three = APGD(net, **settings)(x, y), APGD(net, **settings, restarts=3)(x, y)
    first, later = fooled(net, one, y), fooled(net, three, y)
    assert torch.equal(three[first], one[first]), "what the first run won is kept"
    assert (first <= later).all()
    assert first.sum() < later.sum(), "further starts must win some more here"
    loss = [
        nn.functional.cross_entropy(
            net(APGD(net, **settings, restarts=n, returns="max_loss")(x, y)), y, reduction="none"
        )
        for n in (1, 3)
    ]
    assert (loss[1] >= loss[0]).all()
    assert (loss[1] > loss[0]).any()
    with pytest.raises(ValueError, match="every one would find the same"):
        APGD(net, restarts=2)(x, y, start=x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_targeted_climbs_towards_the_wanted_class(problem: Problem, norm: str, loss: str) -> None:
    net, x, _ = problem
    wanted = (net(x).argmax(1) + 1) % 5
    found = APGD(net, eps=10 * EPS[norm], norm=norm, steps=20, targeted=True, loss=loss)(x, wanted)
    hit = net(found).argmax(1) == wanted
    assert hit.sum() > 6
    assert torch.equal(found[~hit], x[~hit])
    closest = APGD(net, eps=EPS[norm], norm=norm, steps=20, targeted=True, loss=loss, returns="max_loss")(
        x, wanted
    )
    share = net(closest).log_softmax(1).gather(1, wanted[:, None])
    assert (share > net(x).log_softmax(1).gather(1, wanted[:, None])).all()


@pytest.mark.parametrize("norm", NORMS)
def test_each_sample_may_have_its_own_eps(problem: Problem, norm: str) -> None:
    net, x, y = problem
    net = RowByRow()
    y = net(x).argmax(1)
    eps = EPS[norm] * torch.linspace(0, 1, 12, dtype=torch.float64)
    index = torch.arange(12)
    whole = APGD(net, eps=eps, norm=norm, steps=6, returns="max_loss")(x, y, index)
    for row in (0, 5, 11):
        rows = slice(row, row + 1)
        alone = APGD(net, eps=float(eps[row]), norm=norm, steps=6, returns="max_loss")
        assert torch.equal(alone(x[rows], y[rows], index[rows]), whole[rows])
    assert torch.equal(whole[0], x[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(20,), (4, 6), (5, 7, 7), (2, 3, 4, 5)])
def test_a_linear_model_falls_as_soon_as_it_can(norm: str, shape: tuple[int, ...]) -> None:
    """After adversarial-library's tests: the distance to the nearest boundary is known, and a bit more is enough."""
    generator = torch.Generator().manual_seed(3)
    n = int(torch.tensor(shape).prod())
    weight = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    x = 0.5 + 0.02 * torch.rand(5, *shape, generator=generator, dtype=torch.float64)

    def linear(x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ weight

    y = linear(x).argmax(1)
    logits = linear(x)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    distance = torch.full((5,), torch.inf, dtype=torch.float64)
    for other in range(3):
        gap = logits.gather(1, y[:, None]).squeeze(1) - logits[:, other]
        length = (weight[:, y] - weight[:, [other]]).norm(dual, dim=0)
        distance = torch.where(y == other, distance, torch.minimum(distance, gap / length))
    assert torch.isfinite(distance).all()
    for loss in ("ce", "dlr", "margin"):
        short = APGD(linear, eps=0.98 * distance, norm=norm, steps=20, loss=loss)(x, y)
        assert torch.equal(short, x)
    targeted = APGDT(linear, eps=1.02 * distance, norm=norm, steps=100, loss="margin")(x, y)
    assert (linear(targeted).argmax(1) != y).all()


def test_the_start_lies_on_the_sphere() -> None:
    x, seed = 0.5 + 0 * images(4), 7
    eps, index = torch.full((4,), 0.1, dtype=torch.float64), torch.arange(4)
    for norm, order in (("linf", torch.inf), ("l2", 2)):
        attack = APGD(nn.Identity(), norm=norm, eps=0.1)
        start = attack._start(x, eps, index, seed)
        lengths = (start - x).flatten(1).norm(order, dim=1)
        assert torch.allclose(lengths, eps, rtol=1e-12)
        assert (start[0] != start[1]).any()
    again = attack._start(x[2:], eps[2:], index[2:], seed)
    assert torch.equal(again, start[2:])


def test_channels_last_images_stay_so(problem: Problem) -> None:
    net, x, y = problem
    last = x.contiguous(memory_format=torch.channels_last)
    for norm in NORMS:
        attack = APGD(net, eps=EPS[norm], norm=norm, steps=5, early_stop=True)
        found = attack(last, y)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(found, attack(x, y), rtol=0, atol=1e-9)


def test_settings_out_of_range_are_named() -> None:
    net = nn.Identity()
    for more, message in (
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"eot": 0}, "eot is 0"),
        ({"rho": 1.5}, "rho is 1.5"),
        ({"returns": "best"}, "returns is 'best', expected one of success_only, max_loss"),
        ({"loss": "kl"}, "takes probabilities"),
    ):
        with pytest.raises(ValueError, match=message):
            APGD(net, **more)
    with pytest.raises(ValueError, match="loss is 'ce', expected 'dlr' or 'margin'"):
        APGDT(net, loss="ce")
    with pytest.raises(ValueError, match="n_target_classes is 0"):
        APGDT(net, n_target_classes=0)
    with pytest.raises(ValueError, match=r"expected labels int64 \[2\]"):
        APGD(net, loss=lambda logits, y: logits.sum(1))(torch.rand(2, 3), torch.rand(2, 3))
