"""What every attack in the table promises, whatever it does: held over the table, not copied per attack."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustfast.attacks import ATTACKS, PGD, Attack, folding
from robustfast.attacks.attack import Attack as Base
from robustfast.evaluation.attack_names import settings_of

T = TypeVar("T")

CLASSES, SIZE = 5, 16
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}
EPS = {"linf": 0.1, "l2": 0.8, "l1": 6.0}
# Enough for every branch of a loop; a full attack is thousands of passes.
FEW = {"steps": 3, "queries": 12, "search_steps": 2, "samples": 4}
CASES = [(name, norm) for name, preset in ATTACKS.items() for norm in preset.attack.norms or (None,)]


def network(dtype: torch.dtype = torch.float64, classes: int = CLASSES) -> nn.Module:
    """Images [B, 3, 16, 16] -> logits, with batch norm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(54, classes),
        )
        for _ in range(3):
            net(torch.rand(16, 3, SIZE, SIZE))
    return net.to(dtype)


class RowByRow(nn.Module):
    """A network whose every sum runs over one sample in one order, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(
            torch.randn(3 * SIZE * SIZE, 12, generator=generator, dtype=torch.float64) * 0.1
        )
        self.last = nn.Parameter(torch.randn(12, CLASSES, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows = [torch.tanh(row.flatten() @ self.first) @ self.last for row in x - 0.5]
        return torch.stack(rows) if rows else x.new_zeros(0, CLASSES)


def images(batch: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(batch, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    if batch:
        x[0] = x[0].round()  # pixels at the walls of the box
    return x, torch.randint(0, CLASSES, (batch,), generator=generator)


def build(name: str, norm: str | None, model: Any, **more: Any) -> Attack:
    """The attack by its name, cut down to a few steps."""
    preset = ATTACKS[name]
    bound = {} if norm is None else {"norm": norm, "eps": more.pop("eps", EPS[norm])}
    if name == "transfer":
        more.setdefault("source", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = preset(model, **bound, **more)
        few = {key: value for key, value in FEW.items() if getattr(whole, key, 0) > value}
        return preset(model, **bound, **few, **more)


def run(attack: Attack, *args: Any, **more: Any) -> Tensor:
    """Call it; what it warns of a toy model is not looked at here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attack(*args, **more)


def check(
    x_adv: Tensor, x: Tensor, norm: str | None, eps: float | None, lo: float = 0, hi: float = 1
) -> None:
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert x_adv.isfinite().all()
    if len(x):
        assert x_adv.amin() >= lo
        assert x_adv.amax() <= hi
    if norm is not None and eps is not None:
        length = (x_adv.double() - x.double()).flatten(1).norm(p=ORDER[norm], dim=1)
        rounding = 1e-12 if x.dtype == torch.float64 else 1e-5
        assert (length <= eps * (1 + rounding) + rounding).all(), length.max() - eps


by_name_and_norm = pytest.mark.parametrize(("name", "norm"), CASES)


@by_name_and_norm
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**40),
    scale=st.sampled_from([0.0, 0.01, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    batch=st.integers(1, 3),
)
def test_the_result_lies_in_ball_and_box(
    name: str, norm: str | None, seed: int, scale: float, dtype: torch.dtype, batch: int
) -> None:
    x, y = images(batch, dtype, seed % 1000)
    eps = None if norm is None else scale * EPS[norm]
    attack = build(name, norm, network(dtype), seed=seed, **({} if eps is None else {"eps": eps}))
    x_adv = run(attack, x, y)
    check(x_adv, x, norm, eps)
    if eps == 0:
        assert torch.equal(x_adv, x)


@by_name_and_norm
def test_nothing_of_the_model_or_of_the_random_state_is_touched(name: str, norm: str | None) -> None:
    net, (x, y) = network(), images()
    net.train()
    net[1].eval()
    net[7].bias.requires_grad_(False)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    x.requires_grad_()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    held = [p.requires_grad for p in net.parameters()]
    random, kept = torch.get_rng_state(), x.detach().clone()
    attack = build(name, norm, net)
    x_adv = run(attack, x, y)
    check(x_adv, x.detach(), norm, attack.eps if norm else None)
    assert torch.equal(x, kept)
    assert x.grad is None
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == held
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert (net[0].weight.grad == 1).all()
    assert all(p.grad is None for p in net[3].parameters())


@by_name_and_norm
def test_the_model_is_put_back_when_it_raises(name: str, norm: str | None) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of memory, say")
            return self.net(x)

    net = Failing()
    net.train()
    attack = build(name, norm, net)
    net.calls = 0

    def twice() -> None:
        run(attack, *images())
        run(attack, *images())

    if ATTACKS[name].attack.kind != "noise":
        with pytest.raises(RuntimeError, match="out of memory"):
            twice()
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad for p in net.parameters())


@by_name_and_norm
def test_a_folded_model_gives_the_images_of_the_plain_one(name: str, norm: str | None) -> None:
    net, (x, y) = network(), images()
    attack = build(name, norm, net)
    found = []
    for mode in ("off", "on"):
        with folding(mode):
            found.append(run(attack, x, y))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert "forward" not in vars(net)


@by_name_and_norm
@pytest.mark.parametrize("cut", [1, 3, 7])
def test_results_do_not_depend_on_the_batch(name: str, norm: str | None, cut: int) -> None:
    x, y = images(7)
    net, index = RowByRow(), torch.tensor([5, 0, 9, 2**33, 1, 7, 3])
    y[::2] = net(x)[::2].argmax(1)
    whole = run(build(name, norm, net), x, y, index)
    attack = build(name, norm, net)
    parts = [
        run(attack, *(t[rows] for t in (x, y, index)))
        for rows in (slice(first, first + cut) for first in range(0, 7, cut))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, x)
    order = torch.tensor([3, 6, 0, 5, 1, 2, 4])
    assert torch.equal(run(attack, x[order], y[order], index[order]), whole[order])


@by_name_and_norm
def test_the_graph_is_the_eager_loop(
    name: str, norm: str | None, captures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = images(5)
    net = RowByRow()
    y = net(x).argmax(1)
    eager = build(name, norm, net)
    expected = run(eager, x, y)
    report = eager.report
    monkeypatch.setattr(Base, "_uses_graph", lambda self, x, graph: True)
    attack = build(name, norm, net)
    assert torch.equal(run(attack, x, y), expected)
    assert attack.report == report
    first = len(captures)
    assert torch.equal(run(attack, x, y), expected)
    assert len(captures) == first, "the second call replays what the first has captured"
    if name == "spsa":
        drawn = run(attack, x, y, epoch=1)
        assert len(captures) == first, "so does another epoch"
        assert torch.equal(drawn, run(eager, x, y, epoch=1))
        assert not torch.equal(drawn, expected)


@pytest.mark.gpu
@by_name_and_norm
def test_on_a_gpu_the_graph_is_the_eager_loop(name: str, norm: str | None) -> None:
    net, (x, y) = network().cuda().eval(), images(5)
    x, y = x.cuda(), y.cuda()
    y = net(x).argmax(1)
    eager = build(name, norm, net, engine="eager")
    expected = run(eager, x, y)
    attack = build(name, norm, net, engine="auto" if name in NO_LOOP else "graph")
    for _ in range(2):
        assert torch.equal(run(attack, x, y), expected)
        assert attack.report == eager.report


def test_the_attacks_that_no_graph_holds_are_known(
    captures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attack that leaves its loop out of graphs without a reason written down fails here."""
    monkeypatch.setattr(Base, "_uses_graph", lambda self, x, graph: True)
    without, net, (x, _) = set(), RowByRow(), images(2)
    y = net(x).argmax(1)  # images that the model is right about: others are won before any loop
    for name, norm in CASES:
        captures.clear()
        run(build(name, norm, net), x, y)
        if not captures:
            without.add(name)
    assert without <= NO_LOOP


# Draws and forward passes alone, or one pass: nothing to replay.
NO_LOOP = {"noise"}


def constant(x: Tensor) -> Tensor:
    return torch.zeros(len(x), CLASSES, dtype=x.dtype) + 0 * x.flatten(1).sum(1, keepdim=True)


def detached(x: Tensor) -> Tensor:
    return torch.zeros(len(x), CLASSES, dtype=x.dtype)


def not_a_number(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :CLASSES] * torch.nan


def infinite(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :CLASSES] / 0


def without_classes(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def in_place(x: Tensor) -> Tensor:
    return x.sub_(0.5).flatten(1)[:, :CLASSES]


def not_a_tensor(x: Tensor) -> Any:
    return {"logits": x.flatten(1)[:, :CLASSES]}


def some_rows_nan(x: Tensor) -> Tensor:
    logits = x.flatten(1)[:, :CLASSES] * 10
    return torch.where(torch.arange(len(x))[:, None] == 1, torch.nan, logits)


RIGHT = (constant, not_a_number, infinite, some_rows_nan)
WRONG = (detached, without_classes, in_place, not_a_tensor)


def outcome(call: Callable[[], T]) -> tuple[T | None, str]:
    """What it returns, or the message it is refused with."""
    try:
        return call(), ""
    except (TypeError, ValueError) as error:
        return None, str(error)


def one_line(call: Callable[[], object], naming: str = "") -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert str(caught.value)
    assert naming in str(caught.value)


@by_name_and_norm
@pytest.mark.parametrize("model", RIGHT, ids=lambda model: model.__name__)
def test_a_hostile_model_gives_images_of_the_ball(name: str, norm: str | None, model: Any) -> None:
    x, y = images()
    attack = build(name, norm, model)
    check(run(attack, x, y), x, norm, attack.eps if norm else None)


@by_name_and_norm
@pytest.mark.parametrize("model", WRONG, ids=lambda model: model.__name__)
def test_a_model_that_is_none_is_refused_in_one_line(name: str, norm: str | None, model: Any) -> None:
    x, y = images()
    kept = x.clone()
    attack = build(name, norm, model)
    kind = ATTACKS[name].attack.kind
    if kind == "noise" or (kind == "black-box" and model is detached):
        return  # needs no gradient: constant logits are an answer
    one_line(lambda: run(attack, x, y))
    assert torch.equal(x, kept)


@by_name_and_norm
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_work_or_are_refused_in_one_line(name: str, norm: str | None, classes: int) -> None:
    x, y = images()
    attack = build(name, norm, network(classes=classes))
    x_adv, refusal = outcome(lambda: run(attack, x, y % classes))
    if x_adv is None:
        assert "\n" not in refusal
        assert "margin" in refusal or "classes" in refusal
    else:
        check(x_adv, x, norm, attack.eps if norm else None)


@by_name_and_norm
def test_wrong_images_and_labels_are_refused_in_one_line(name: str, norm: str | None) -> None:
    x, y = images()
    attack = build(name, norm, network())
    one_line(lambda: run(attack, x + 1, y))
    one_line(lambda: run(attack, x * 255, y))
    one_line(lambda: run(attack, torch.where(x > 0.9, torch.nan, x), y))
    one_line(lambda: run(attack, x.bfloat16(), y))
    one_line(lambda: run(attack, x, y[:2]))
    one_line(lambda: run(attack, x, y.double()))
    if ATTACKS[name].attack.kind != "noise":
        one_line(lambda: run(attack, x, y + CLASSES))
        one_line(lambda: run(attack, x, y - CLASSES))


@by_name_and_norm
def test_a_wrong_index_is_refused_in_one_line(name: str, norm: str | None) -> None:
    x, y = images()
    attack, index = build(name, norm, network()), torch.arange(5)
    for wrong in (index, index[:3], index[:1], index[0], index[:4].int(), index[:4].double(), [0, 1, 2, 3]):
        one_line(lambda wrong=wrong: run(attack, x, y, wrong), "index is")


@by_name_and_norm
def test_a_radius_is_one_number_or_one_each(name: str, norm: str | None) -> None:
    x, y = images()
    net = network().eval()
    if norm is None or name == "autoattack":
        one_line(lambda: build(name, norm, net, eps=x.new_full((4,), 0.1)), "eps ")
        return
    size = EPS[norm]
    expected = run(build(name, norm, net, eps=x.new_tensor(size)), x, y)
    assert torch.equal(run(build(name, norm, net, eps=x.new_full((4,), size)), x, y), expected)
    for shape in ((5,), (3,), (1,), (4, 1)):
        attack = build(name, norm, net, eps=x.new_full(shape, size))
        one_line(lambda attack=attack: run(attack, x, y), "eps has shape")
    attack = build(name, norm, net, eps=torch.full((4,), size, dtype=torch.float32))
    one_line(lambda: run(attack, x, y), "eps is torch.float32")


def test_a_step_size_is_one_number_or_one_each() -> None:
    x, y = images()
    net = network().eval()
    expected = PGD(net, step_size=x.new_tensor(0.01))(x, y)
    each = x.new_full((4,), 0.01)
    assert torch.equal(PGD(net, step_size=each)(x, y), expected)
    assert torch.equal(PGD(net)(x, y, step_size=each), expected)
    for wrong in (each[:3], each[:1], each[:, None], torch.cat([each, each]), each.float()):
        one_line(lambda wrong=wrong: PGD(net, step_size=wrong)(x, y), "step_size")
        one_line(lambda wrong=wrong: PGD(net)(x, y, step_size=wrong), "step_size")
        one_line(lambda wrong=wrong: PGD(net)(x, y, eps=wrong), "eps")


@by_name_and_norm
def test_empty_and_single_batches(name: str, norm: str | None) -> None:
    net = network()
    attack = build(name, norm, net)
    for batch in (0, 1):
        x, y = images(batch)
        check(run(attack, x, y), x, norm, attack.eps if norm else None)
        assert attack.report.samples == batch


@by_name_and_norm
def test_layouts_stay(name: str, norm: str | None) -> None:
    x, y = images()
    x = x.contiguous(memory_format=torch.channels_last)
    x_adv = run(build(name, norm, network()), x, y)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)


@by_name_and_norm
def test_no_grad_changes_nothing_and_inference_mode_is_refused(name: str, norm: str | None) -> None:
    x, y = images()
    attack = build(name, norm, network())
    expected = run(attack, x, y)
    with torch.no_grad():
        assert torch.equal(run(attack, x, y), expected)
    with torch.inference_mode():
        one_line(lambda: run(attack, x, y))


@by_name_and_norm
def test_a_targeted_attack_goes_towards_its_target(name: str, norm: str | None) -> None:
    net, (x, _) = network(), images(6)
    net.eval()
    attack, refusal = outcome(lambda: build(name, norm, net, targeted=True))
    if attack is None:
        assert "targeted" in refusal
        return
    wanted = (net(x).argmax(1) + 1) % CLASSES
    x_adv = run(attack, x, wanted)

    def share(images: Tensor) -> Tensor:
        return net(images).softmax(1).gather(1, wanted[:, None]).mean()

    assert share(x_adv) >= share(x) - 1e-9


@pytest.mark.parametrize("name", ATTACKS)
def test_the_docstring_gives_the_source(name: str) -> None:
    text = ATTACKS[name].attack.__doc__ or ""
    assert any(f"{year}" in text for year in range(1990, 2027)), "paper and year"


@pytest.mark.parametrize(
    "preset", [preset for preset in ATTACKS.values() if preset.attack.norms], ids=lambda p: p.attack.__name__
)
def test_wrong_settings_are_refused_in_one_line(preset: Any) -> None:
    norm = preset.attack.norms[0]
    one_line(lambda: preset(network(), norm="l3"))
    one_line(lambda: preset(network(), norm=norm, eps=-0.1))
    one_line(lambda: preset(network(), norm=norm, bounds=(1.0, 0.0)))
    one_line(lambda: preset(network(), norm=norm, batch_norm="train"))
    one_line(lambda: preset(network(), norm=norm, engine="fast"))
    if "linf" in preset.attack.norms:
        one_line(lambda: preset(network(), norm="linf", eps=8))


@pytest.mark.parametrize("preset", list(ATTACKS.values()), ids=list(ATTACKS))
@pytest.mark.parametrize("wrong", [True, 2.0, -1], ids=repr)
def test_a_count_is_a_whole_number(preset: Any, wrong: Any) -> None:
    known = settings_of(preset.attack)
    for setting in {"steps", "restarts", "queries", "search_steps", "samples", "chunk", "eot"} & set(known):
        more = {"source": network()} if "source" in known else {}
        one_line(lambda setting=setting, more=more: preset(network(), **{setting: wrong}, **more), setting)


class Waits(TorchDispatchMode):
    """The calls inside an attack's loop that read a value on the host, or need one for the shape of their result."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "item")
    BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.loops = 0
        self.found: set[str] = set()

    def loop(self, graph: Any, buffers: dict[str, Any], **keywords: Any) -> None:
        """In place of `Attack._run_loop`."""
        self.inside, self.loops = True, self.loops + 1
        try:
            graph.loop(**buffers, **keywords)
        finally:
            self.inside = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        masked = name in self.BY_MASK and any(
            isinstance(rows, Tensor) and rows.dtype in (torch.bool, torch.uint8) for rows in args[1]
        )
        if self.inside and (masked or name in self.NAMES):
            self.found.add(f"{name} by mask" if masked else name)
        return func(*args, **(kwargs or {}))


@by_name_and_norm
@pytest.mark.parametrize("more", [{}, {"early_stop": True}, {"targeted": True}], ids=str)
def test_no_loop_waits_for_the_device(
    name: str, norm: str | None, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, y) = network(torch.float32).eval(), images(5, torch.float32)
    y = (net(x).argmax(1) + ("targeted" in more)) % CLASSES
    attack, _ = outcome(lambda: build(name, norm, net, **more))
    if attack is None or set(more) - set(settings_of(ATTACKS[name].attack)):
        pytest.skip(f"has no {more}")
    with Waits() as waits:
        monkeypatch.setattr(Base, "_run_loop", lambda self, *args, **keywords: waits.loop(*args, **keywords))
        run(attack, x, y)
    assert not waits.found
    assert waits.loops or name in NO_LOOP


def test_what_waits_is_seen() -> None:
    """The test above can fail."""
    x = torch.rand(3)
    calls: dict[str, Callable[[], object]] = {
        "_local_scalar_dense": lambda: x[0].item() > 0.5 or bool(x[0] > 0.5),
        "nonzero": lambda: (x > 0.5).nonzero(),
        "index by mask": lambda: x[x > 0.5],
        "index_put_ by mask": lambda: x.index_put_((x > 0.5,), x.new_zeros(())),
    }
    for name, call in calls.items():
        with Waits() as waits:
            call()
            assert not waits.found
            waits.loop(type("Graph", (), {"loop": staticmethod(call)}), {})
        assert name in waits.found
