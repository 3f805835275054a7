"""FAB and FAB-T beside the published implementations, step by step, and what each sample is promised."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import FAB, FABT
from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import Remaining
from robustfast.attacks.nearest import distance
from robustfast.data import load

RECORDED = Path(__file__).parent / "recorded"
NORMS = ("linf", "l2", "l1")
PUBLISHED = {"linf": "Linf", "l2": "L2", "l1": "L1"}
EPS = {"linf": 0.05, "l2": 0.3, "l1": 2.0}
Visits = Callable[..., list[Tensor]]
Problem = tuple[nn.Module, Tensor, Tensor]

by_norm = pytest.mark.parametrize("norm", NORMS)
both = pytest.mark.parametrize("targeted", [False, True], ids=["fab", "fab-t"])


@pytest.fixture
def torchattacks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, run in float64 throughout: it makes its tensors in the default dtype, and images `.float()`."""
    package = pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield package
    torch.set_default_dtype(torch.float32)
    torch.set_rng_state(state)


@pytest.fixture
def double(make_net: Callable[..., nn.Module]) -> Problem:
    """A network, twelve images and the classes it gives all but the last one."""
    net = make_net(torch.float64).eval()
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0] = x[0].round()  # at the walls of the box
    y = net(x).argmax(1)
    y[-1] = (y[-1] + 1) % 5
    return net, x, y


def theirs(package: Any, net: nn.Module, norm: str, steps: int, *, targeted: bool, **more: Any) -> Any:
    return package.FAB(net, norm=PUBLISHED[norm], steps=steps, multi_targeted=targeted, **more)


def ours(net: Any, norm: str, *, targeted: bool, classes: int = 9, **more: Any) -> Attack:
    return FABT(net, norm=norm, n_target_classes=classes, **more) if targeted else FAB(net, norm=norm, **more)


@both
@by_norm
@pytest.mark.parametrize("drawn", [False, True], ids=["from-x", "from-a-draw"])
def test_every_step_is_that_of_torchattacks(
    double: Problem,
    visits: Visits,
    torchattacks: Any,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    targeted: bool,
    drawn: bool,
) -> None:
    net, x, y = double
    right = net(x).argmax(1) == y
    attack = theirs(torchattacks, net, norm, 15, targeted=targeted, eps=EPS[norm])
    attack.target_class = 2
    noise = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "rand" if norm == "linf" else "randn", lambda shape: noise[right])
    found: list[Tensor] = []

    def run() -> None:
        single = attack.attack_single_run_targeted if targeted else attack.attack_single_run
        found.append(single(x, y, use_rand_start=drawn))

    expected = visits(net, run)
    start = None
    if drawn:
        direction = 2 * noise - 1 if norm == "linf" else noise
        length = distance(direction, torch.zeros_like(x), norm).reshape(-1, 1, 1, 1)
        start = (x + EPS[norm] * direction / length * 0.5).clamp(0, 1)
    mine = ours(net, norm, targeted=targeted, classes=1, steps=15, eps=None)
    seen = visits(net, lambda: found.append(mine(x, y, start=start)))
    # Both run on x first, all of it, and from then on on what is classified right.
    assert len(seen) == len(expected)
    assert len(seen) > 20, "the points after a step and those after moving back"
    for number, (a, b) in enumerate(zip(seen, expected, strict=True)):
        differing = int(((a - b).abs() > 1e-10).sum())
        assert differing == 0, f"{differing} of {a.numel()} pixels of pass {number}"
    assert (found[1] - found[0]).abs().max() < 1e-10
    moved = distance(found[1], x, norm)
    assert (moved[right] > 0).sum() >= 10
    assert torch.equal(found[1][~right], x[~right])


@both
@pytest.mark.parametrize("norm", ["linf", "l2"])  # its l1 ends in a NameError
def test_what_is_returned_is_that_of_torchattacks(
    double: Problem, torchattacks: Any, norm: str, targeted: bool
) -> None:
    net, x, y = double
    eps = (
        float(distance(ours(net, norm, targeted=targeted, steps=12, eps=None)(x, y), x, norm)[:-1].median())
        * 1.001
    )
    expected = theirs(torchattacks, net, norm, 12, targeted=targeted, eps=eps, n_classes=5)(x, y)
    found = ours(net, norm, targeted=targeted, steps=12, eps=eps)(x, y)
    assert (found - expected).abs().max() < 1e-10
    moved = distance(found, x, norm)
    assert 0 < (moved > 0).sum() < 11, "some lie within eps and some do not"


def recorded() -> dict[str, Any]:
    return json.loads((RECORDED / "fab.json").read_text())


@pytest.mark.parametrize(
    "case", recorded()["cases"], ids=lambda case: f"{case['norm']}-{'fab-t' if case['targeted'] else 'fab'}"
)
def test_every_step_is_that_of_autoattack(case: dict[str, Any], visits: Visits) -> None:
    """AutoAttack's own FAB, which has what torchattacks' copy of it lacks: l1 to its end, and a number of classes.

    recorded/record_fab.py ran the package at the commit that fab.json names, in float64, on the network and images that
    recorded/closed_form.py writes as formulas; there is no seed, since nothing is drawn before a second restart. Of
    each image that the model was run on two weighted sums were written down, of those of one run at the second largest
    class (or of the untargeted run), and of the images that one run and the whole attack return.
    """
    spec = importlib.util.spec_from_file_location("record_fab", RECORDED / "closed_form.py")
    formulas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formulas)
    net, (x, y) = formulas.network(), formulas.images()

    def sums(images: Tensor) -> Tensor:
        flat = images.flatten(1)
        k = torch.arange(flat.shape[1], dtype=torch.float64)
        return torch.stack([flat @ torch.sin(0.7 + 1.9 * k), flat @ torch.cos(0.3 + 0.9 * k)], dim=1)

    def close(images: Tensor, written: list[list[float]]) -> None:
        torch.testing.assert_close(
            sums(images), torch.tensor(written, dtype=torch.float64), rtol=1e-8, atol=1e-8
        )

    steps, norm, targeted = recorded()["steps"], case["norm"], case["targeted"]
    one = ours(net, norm, targeted=targeted, classes=1, steps=steps, eps=None)
    found: list[Tensor] = []
    seen = visits(net, lambda: found.append(one(x, y)))
    assert len(seen) == len(case["visited"])
    for images, written in zip(seen, case["visited"], strict=True):
        close(images, written)
    close(found[0], case["nearest"])
    whole = ours(
        net, norm, targeted=targeted, classes=recorded()["n_target_classes"], steps=steps, eps=case["eps"]
    )
    within = whole(x, y)
    close(within, case["within"])
    assert (net(within).argmax(1) == y).tolist() == case["robust"]


class Passes:
    """Forward and backward passes over images, and those that computed gradients of weights."""

    def __init__(self, record: Any, call: Callable[[], object]) -> None:
        with record() as seen:
            call()
        self.forward = seen.count("aten::convolution") // 2
        backward = seen.arguments("aten::convolution_backward")
        self.backward = len(backward) // 2
        self.weights = sum(mask[1] for *_, mask in backward) // 2


@both
def test_fewer_passes_than_torchattacks(
    double: Problem, torchattacks: Any, record: Any, targeted: bool
) -> None:
    """Of a network of two convolutions: the same steps from fewer passes, none of which looks at a weight."""
    net, x, y = double
    steps, classes, runs = 6, 5, 4 if targeted else 1
    attack = theirs(torchattacks, net, "l2", steps, targeted=targeted, eps=1e-9, n_classes=classes)
    published = Passes(record, lambda: attack(x, y))
    net.zero_grad()
    mine = Passes(record, lambda: ours(net, "l2", targeted=targeted, steps=steps, eps=1e-9)(x, y))
    each = 1 if targeted else classes
    # x once, then for each run x again, with targets twice, two passes a step and one for the class of the result.
    assert published.forward == 1 + runs * (2 * steps + (3 if targeted else 2))
    assert published.backward == published.weights == runs * steps * each
    assert mine.forward == 1 + runs * 2 * steps
    assert mine.backward == runs * steps * (1 if targeted else classes - 1)
    assert mine.weights == 0


def linear(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model and points so far from the walls that the distance to each boundary is known."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(20, classes)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 20, generator=generator))
        net[1].bias.zero_()
    x = torch.randn(5, 4, 5, generator=generator, dtype=torch.float64) * 0.2
    return net, x, net(x).argmax(1)


@both
@by_norm
def test_the_nearest_boundary_of_a_linear_model(norm: str, targeted: bool) -> None:
    net, x, y = linear()
    logits, weight = net(x), net[1].weight
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    apart = torch.linalg.vector_norm(weight - weight[y][:, None], dual, dim=2)
    away = ((logits - logits.gather(1, y[:, None])).abs() / apart).scatter(1, y[:, None], torch.inf)
    found = ours(net, norm, targeted=targeted, eps=None, steps=30, bounds=(-99.0, 99.0))(x, y)
    assert (net(found).argmax(1) != y).all()
    ratio = distance(found, x, norm) / away.amin(1)
    # 1.05 at once; from 0.9 of the way 1.05 of what is left, and a share of the step from x.
    assert (ratio > 1).all()
    assert (ratio < 1.006).all()


@by_norm
def test_towards_a_wanted_class(norm: str) -> None:
    net, x, y = linear()
    wanted = (y + 1 + torch.arange(5) % 3) % 4
    wanted[3] = y[3]
    attack = FAB(net, norm=norm, eps=None, steps=40, targeted=True, bounds=(-99.0, 99.0))
    found = attack(x, wanted)
    assert (net(found).argmax(1) == wanted).all()
    assert torch.equal(found[3], x[3])
    # No nearer than the nearest boundary of any class.
    anywhere = FAB(net, norm=norm, eps=None, steps=40, bounds=(-99.0, 99.0))(x, y)
    others = torch.arange(5) != 3
    assert (distance(found, x, norm)[others] > 0.99 * distance(anywhere, x, norm)[others]).all()
    with pytest.raises(ValueError, match="fab-t picks its classes itself"):
        FABT(net, targeted=True)


@both
@by_norm
def test_a_radius_keeps_what_lies_within(double: Problem, norm: str, targeted: bool) -> None:
    net, x, y = double
    nearest = ours(net, norm, targeted=targeted, steps=12, eps=None)(x, y)
    away = distance(nearest, x, norm)
    # Of each sample its own radius, just too small or just large enough.
    eps = away * torch.where(torch.arange(12) % 2 == 0, 0.99, 1.01)
    within = ours(net, norm, targeted=targeted, steps=12, eps=eps)(x, y)
    expected = torch.where((torch.arange(12) % 2 == 0).reshape(-1, 1, 1, 1), x, nearest)
    # FAB-T stops at the first class that is within; of the nearest class that is this one or an earlier one.
    assert torch.equal(within[::2], x[::2])
    assert (distance(within, x, norm) <= eps).all()
    if not targeted:
        torch.testing.assert_close(within, expected, rtol=0, atol=1e-12)
    assert (net(within[1:-1:2]).argmax(1) != y[1:-1:2]).all()


@both
def test_early_stopping_fools_the_same_samples_with_fewer_passes(
    double: Problem, record: Any, targeted: bool
) -> None:
    net, x, y = double
    rows: list[list[int]] = []
    found = []
    eps = (
        float(distance(ours(net, "l2", targeted=targeted, steps=30, eps=None)(x, y), x)[:-1].median()) * 1.001
    )
    for early_stop in (False, True):
        attack = ours(net, "l2", targeted=targeted, steps=30, eps=eps, early_stop=early_stop)
        with record() as seen:
            found.append(attack(x, y))
        rows.append([len(args[0]) for args in seen.arguments("aten::convolution")])
        assert attack.report.samples == 12
    wrong = [net(images).argmax(1) != y for images in found]
    assert torch.equal(*wrong)
    assert 1 < wrong[0].sum() < 12
    assert (distance(found[1], x) >= distance(found[0], x) - 1e-12).all()
    assert sum(rows[1]) < sum(rows[0])


@by_norm
def test_restarts_keep_the_nearest_and_draw_by_sample(double: Problem, norm: str) -> None:
    net, x, y = double
    index = torch.arange(12) * 7 + 3
    once = FAB(net, norm=norm, eps=None, steps=4)(x, y, index)
    attack = FAB(net, norm=norm, eps=None, steps=4, restarts=3)
    more = attack(x, y, index)
    away = [distance(images, x, norm) for images in (more, once)]
    # x itself: nothing was found.
    further, first = (torch.where(length > 0, length, torch.inf)[:-1] for length in away)
    assert (further <= first + 1e-12).all()
    assert (further < first - 1e-9).any()
    parts = [attack(*(t[rows] for t in (x, y, index))) for rows in (slice(0, 1), slice(1, 5), slice(5, 12))]
    torch.testing.assert_close(torch.cat(parts), more, rtol=0, atol=1e-9)
    other = FAB(net, norm=norm, eps=None, steps=4, restarts=3, seed=1)(x, y, index)
    assert not torch.equal(other, more)


@both
@pytest.mark.parametrize("early_stop", [False, True])
def test_the_graph_is_the_eager_loop(
    double: Problem, captures: list[Any], monkeypatch: pytest.MonkeyPatch, targeted: bool, early_stop: bool
) -> None:
    net, x, y = double
    settings = {"steps": 25, "restarts": 2, "eps": 0.6, "early_stop": early_stop}
    attack = ours(net, "l2", targeted=targeted, **settings)
    expected, report = attack(x, y), attack.report
    monkeypatch.setattr(Attack, "_uses_graph", lambda self, x, graph: True)
    attack = ours(net, "l2", targeted=targeted, **settings)
    torch.testing.assert_close(attack(x, y), expected, rtol=0, atol=1e-9)
    assert attack.report == report
    first = len(captures)
    assert set(captures) <= {(n, 3, 8, 8) for n in (12, 6, 3, 2, 1)}, "a few sizes, whoever is left"
    attack(x, y)
    assert len(captures) == first


def test_the_loop_waits_for_nothing(double: Problem, record: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a device, or has a shape that depends on values, runs between restarts alone."""
    net, x, y = double
    everyone = Remaining(torch.arange(12), 12)
    monkeypatch.setattr("robustfast.attacks.fab.remaining", lambda done, static: everyone)
    for attack in (FAB(net, steps=12), FABT(net, steps=12)):
        with record() as seen:
            attack._attack(x, y, None, epoch=0, start=None)
        called = {name for name, _ in seen.calls}
        waits = {"aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::item"}
        # The frame's own check of pixels and labels reads values back once, after the loop.
        allowed = {"aten::_local_scalar_dense"}
        assert not called & (waits - allowed), called & waits
        assert seen.count("aten::_local_scalar_dense") <= 8


@pytest.mark.parametrize("classes", [2, 3])
@by_norm
def test_few_classes(norm: str, classes: int, visits: Visits) -> None:
    net, x, y = linear(classes)
    attack = FABT(net, norm=norm, eps=None, steps=6, bounds=(-9.0, 9.0))
    found = attack(x, y)
    assert (net(found).argmax(1) != y).all()
    if classes == 2:
        # One boundary: nothing is left to choose.
        alone = FAB(net, norm=norm, eps=None, steps=6, bounds=(-9.0, 9.0))
        assert torch.equal(alone(x, y), found)


@both
@by_norm
def test_hostile_logits(norm: str, targeted: bool) -> None:
    x = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.int64)

    def attacked(model: Any, **more: Any) -> tuple[Tensor, Any]:
        attack = ours(model, norm=norm, targeted=targeted, steps=3, **{"eps": None, **more})
        return attack(x, y), attack.report

    bias = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    found, report = attacked(lambda x: bias + 0 * x.flatten(1)[:, :3])
    assert torch.equal(found, x)
    assert (report.zero_gradient, report.nonfinite_gradient) == (4, 0)
    found, report = attacked(lambda x: x.flatten(1)[:, :3] * torch.nan)
    assert torch.equal(found, x)

    def broken_backward(x: Tensor) -> Tensor:
        # Finite logits whose gradient is nan where a pixel is zero: the square root's.
        return torch.stack([1 + 0 * x.flatten(1)[:, 0], x.flatten(1)[:, 0].sqrt(), x.flatten(1)[:, 1]], dim=1)

    x[1, 0, 0, 0] = 0
    found, report = attacked(broken_backward)
    assert found.isfinite().all()
    assert report.nonfinite_gradient == 1
    one = ours(broken_backward, norm, targeted=targeted, steps=3, eps=None)(x[2:3], y[2:3])
    assert torch.equal(one, found[2:3])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"restarts": 0}, "restarts is 0"),
        ({"alpha_max": 1.5}, "alpha_max is 1.5"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"eta": 0.9}, "eta is 0.9"),
        ({"n_target_classes": 0}, "n_target_classes is 0"),
    ],
)
def test_wrong_settings_are_named(net: nn.Module, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FABT(net, **setting)


@pytest.fixture(scope="module")
def digits(test_data_dir: Path) -> Problem:
    """A small CNN trained for seconds, and the first thousand test images of MNIST."""
    if not (test_data_dir / "mnist").is_dir():
        pytest.skip(f"no MNIST in {test_data_dir}")
    train, test = (load("mnist", split, test_data_dir) for split in ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 49, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for rows in torch.randperm(len(train.images))[:19_200].split(128):
            optimizer.zero_grad()
            F.cross_entropy(net(train.images[rows].float() / 255), train.labels[rows]).backward()
            optimizer.step()
    return net.eval(), test.images[:1000].float() / 255, test.labels[:1000]


@pytest.mark.parametrize(
    ("norm", "eps", "targeted"), [("linf", 0.08, True), ("l2", 0.8, True), ("linf", 0.08, False)]
)
def test_robust_accuracy_on_digits_is_that_of_torchattacks(
    digits: Problem, norm: str, eps: float, targeted: bool
) -> None:
    package = pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")
    net, x, y = digits
    if not targeted:
        x, y = x[:150], y[:150]  # ten backward passes a step
    attack = theirs(package, net, norm, 6, targeted=targeted, eps=eps, n_classes=3)
    expected = (net(attack(x, y)).argmax(1) == y).sum()
    found = (net(ours(net, norm, targeted=targeted, classes=2, steps=6, eps=eps)(x, y)).argmax(1) == y).sum()
    assert abs(int(found - expected)) <= 0.002 * len(x)
    assert 0.1 * len(x) < found < 0.9 * len(x)
