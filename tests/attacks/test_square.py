"""Square beside torchattacks query by query and over seeds, and the laws of what it draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import PGD, Square
from robustfast.attacks.draws import uniform
from robustfast.attacks.square_moves import grid, numbers, patterns, recolour, remodel, stripes
from robustfast.attacks.square_windows import pieces, share, window
from robustfast.data import load

EPS = {"linf": 0.1, "l2": 0.6, "l1": 3.0}
NORMS = tuple(EPS)
QUERIES = 60


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")


class Rows(nn.Module):
    """A network whose every sum runs over one sample in one order; remembers what it was asked."""

    def __init__(self, channels: int = 3, size: int = 16, classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = {"generator": generator, "dtype": torch.float64}
        self.first = nn.Parameter(torch.randn(channels * size * size, 12, **draw) * 0.2)
        self.last = nn.Parameter(torch.randn(12, classes, **draw))
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return torch.stack([torch.tanh((row - 0.5).flatten() @ self.first) @ self.last for row in x])


def images(batch: int, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64)


def numbers_drawn(attack: Square, index: Tensor, shape: tuple[int, ...]) -> Iterator[float]:
    """What Square draws for one image, one number after the other."""
    channels, height, width = shape
    key = attack._key(0, 0)
    if attack.norm == "linf":
        yield from uniform(index, (channels, 1, width), seed=key).flatten().tolist()
    else:
        tile = height // 5
        tiles = uniform(index, (channels + 1, height // tile, width // tile), seed=key)[0]
        yield from tiles.movedim(0, 2).flatten().tolist()
    for piece in pieces(
        attack.queries, attack.p_init, height, width, attack.norm, rescale=attack.resc_schedule
    ):
        count = (piece.count, numbers(channels, attack.norm))
        yield from uniform(index, count, seed=key, step=1 + piece.first).flatten().tolist()


@pytest.mark.parametrize(("norm", "channels"), [("linf", 1), ("linf", 3), ("l2", 1)])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_query_is_that_of_torchattacks_on_the_same_draws(
    norm: str, channels: int, rescale: bool, number: int, torchattacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For one image torchattacks draws what we draw, and in the same order. With more channels its l2 budget differs.
    asked, theirs_asked = Rows(channels), Rows(channels)
    x = images(1, channels, seed=number)
    y = asked(x).argmax(1)
    asked.asked.clear()
    eps = {"linf": 0.015, "l2": 0.2}[norm] / channels
    ours = Square(asked, norm=norm, eps=eps, queries=120, resc_schedule=rescale)
    found = ours(x, y, torch.tensor([number]))
    drawn = numbers_drawn(ours, torch.tensor([number]), tuple(x.shape[1:]))

    def rand(*shape: Any) -> Tensor:
        shape = shape[0] if isinstance(shape[0], (list, tuple, torch.Size)) else shape
        return torch.tensor([next(drawn) for _ in range(math.prod(shape))], dtype=torch.float64).reshape(
            shape
        )

    theirs = torchattacks.Square(
        theirs_asked, norm=norm.capitalize(), eps=eps, n_queries=120, resc_schedule=rescale
    )
    default = torch.get_default_dtype()
    monkeypatch.setattr(torch, "rand", rand)
    torch.set_default_dtype(torch.float64)
    try:
        expected = theirs(x, y)
    finally:
        torch.set_default_dtype(default)
    # Ours goes on to the end of a block, theirs ends with a look at what it found.
    both = min(len(asked.asked), len(theirs_asked.asked) - 1)
    assert both > 10
    # Under l2 a window that holds next to nothing is divided by its length, which lends rounding weight.
    rounding = 1e-12 if norm == "linf" else 1e-4
    for query in range(both):
        assert (asked.asked[query] - theirs_asked.asked[query]).abs().max() < rounding, query
    assert torch.allclose(found, expected, rtol=0, atol=rounding)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained against PGD on the real digits, and all of them."""
    splits = [load("digits", split) for split in ("train", "test")]
    x = torch.cat([split.images for split in splits]).float() / 16
    y = torch.cat([split.labels for split in splits])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    attack = PGD(net, eps=0.1, step_size=0.08, steps=2)
    for _ in range(40):
        x_adv = attack(x, y)
        optimizer.zero_grad()
        F.cross_entropy(net(x_adv), y).backward()
        optimizer.step()
    return net.eval(), x, y


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_is_within_half_a_point_of_torchattacks(
    norm: str, digits: tuple[nn.Module, Tensor, Tensor], torchattacks: Any
) -> None:
    net, x, y = digits
    settings = {"eps": EPS[norm], "resc_schedule": True}
    accuracies: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(5):
        found = {
            "ours": Square(net, norm=norm, queries=QUERIES, seed=seed, **settings)(x, y),
            # Theirs draws one window for all images of a call: many calls, so that one draw does not weigh on all.
            "theirs": torch.cat(
                [
                    torchattacks.Square(
                        net, norm=norm.capitalize(), n_queries=QUERIES, seed=100 * seed + part, **settings
                    )(*batch)
                    for part, batch in enumerate(zip(x.split(600), y.split(600), strict=True))
                ]
            ),
        }
        for side, x_adv in found.items():
            accuracies[side].append(100 * (net(x_adv).argmax(1) == y).double().mean().item())
    means = {side: statistics.mean(values) for side, values in accuracies.items()}
    assert 10 < means["ours"] < 90
    assert abs(means["ours"] - means["theirs"]) <= 0.5, accuracies


@pytest.mark.parametrize("norm", NORMS)
def test_results_are_bit_equal_for_every_size_of_batch(norm: str) -> None:
    net, x = Rows(), images(100)
    index = torch.arange(100) * 2**33 + 5
    y = net(x).argmax(1)
    whole = Square(net, norm=norm, eps=EPS[norm] / 3, queries=16)(x, y, index)
    won = (whole != x).flatten(1).any(1)
    assert 2 < won.sum() < 98
    for size in (1, 17):
        attack = Square(net, norm=norm, eps=EPS[norm] / 3, queries=16)
        parts = [attack(*batch) for batch in zip(*(t.split(size) for t in (x, y, index)), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_the_share_of_a_window_halves_as_in_the_code() -> None:
    at = [0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    shares = [share(query, 10_000, 0.8, rescale=False) for query in at]
    assert shares == [0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625]
    assert share(100, 1000, 0.8, rescale=True) == share(1000, 10_000, 0.8, rescale=False)


def test_sides_of_windows() -> None:
    assert window(0.8, 28, 28, "linf") == (25, 25)
    assert window(0.0015625, 28, 28, "linf") == (1, 1)
    assert window(0.0015625, 28, 28, "l2") == (3, 3)
    assert window(0.4, 28, 28, "l2") == (19, 19), "18 is even"
    assert window(0.8, 8, 4, "linf") == (4, 4), "no longer than the shorter side"
    assert window(0.25, 1, 64, "linf") == (1, 16)


@pytest.mark.parametrize("queries", [0, 1, 7, 100, 1003])
@pytest.mark.parametrize("rescale", [False, True])
def test_pieces_hold_every_query_once_with_its_own_side(queries: int, rescale: bool) -> None:
    plan = list(pieces(queries, 0.8, 28, 28, "linf", rescale=rescale))
    held = [query for piece in plan for query in range(piece.first, piece.first + piece.count)]
    assert held == list(range(queries))
    for piece in plan:
        for query in range(piece.first, piece.first + piece.count):
            side = window(share(query, queries, 0.8, rescale=rescale), 28, 28, "linf")
            assert (piece.height, piece.width) == side


def test_linf_moves_one_window_to_the_surface_of_the_ball() -> None:
    x, eps = torch.full((200, 2, 9, 7), 0.5), torch.full((200,), 0.1)
    draws = uniform(torch.arange(200), (4, 4), seed=1)
    move = recolour(x, eps, draws, height=3, width=3, bounds=(0.0, 1.0))
    out, corners = torch.empty_like(x), set()
    for query in range(4):
        move(query, x, out)
        changed = (out != x).any(1)
        assert torch.allclose((out - x).abs()[(out != x)], torch.tensor(0.1))
        for window_of in changed:
            rows, columns = window_of.any(1).nonzero().squeeze(1), window_of.any(0).nonzero().squeeze(1)
            assert window_of.sum() == 9
            assert len(rows) == len(columns) == 3
            corners.add((rows[0].item(), columns[0].item()))
        per_channel = (out - x).flatten(2).sum(2)
        assert (per_channel.abs() > 0.89).all(), "each channel of a window goes one way"
    assert corners == {(row, column) for row in range(6) for column in range(4)}, (
        "the codes leave out the last"
    )


def test_the_start_under_linf_is_made_of_stripes() -> None:
    x, eps = torch.full((50, 3, 8, 8), 0.5), torch.full((50,), 0.25)
    delta = stripes(x, eps, torch.arange(50), 3, (0.0, 1.0)) - x
    assert (delta.abs() == 0.25).all()
    assert (delta == delta[:, :, :1]).all()
    assert 0.45 < (delta > 0).double().mean() < 0.55


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_budgets_under_l2_and_l1(norm: str) -> None:
    order = {"l2": 2, "l1": 1}[norm]
    x, eps = images(60), torch.full((60,), EPS[norm], dtype=torch.float64)
    x[:20] = 0.5
    index, bounds = torch.arange(60), (0.0, 1.0)

    def check(points: Tensor) -> None:
        length = (points - x).flatten(1).norm(p=order, dim=1)
        assert (length <= EPS[norm] * (1 + 1e-12)).all()
        assert (length[:20] > 0.99 * eps[:20]).double().mean() > 0.8, "far from the walls it is spent"
        assert points.amin() >= 0
        assert points.amax() <= 1

    points = grid(x, eps, index, 5, norm, bounds)
    check(points)
    draws, out = uniform(index, (30, numbers(3, norm)), seed=2), torch.empty_like(x)
    move = remodel(x, eps, draws, patterns(3, 3, norm, x), norm=norm, bounds=bounds)
    for query in range(30):
        move(query, points, out)
        assert not torch.equal(out, points)
        check(out)
        points = out.clone()


@pytest.mark.parametrize("norm", NORMS)
def test_what_it_returns(norm: str) -> None:
    net, x = Rows(), images(40)
    y = net(x).argmax(1)
    y[:10] = (y[:10] + 1) % 5
    x_adv = Square(net, norm=norm, eps=EPS[norm] / 4, queries=30)(x, y)
    fooled = net(x_adv).argmax(1) != y
    same = (x_adv == x).flatten(1).all(1)
    assert same[:10].all(), "the model was wrong about these"
    assert torch.equal(fooled[10:], ~same[10:]), "what did not fool the model is x"
    assert 0 < fooled[10:].sum() < 30


def test_restarts_add_to_what_one_start_wins() -> None:
    net, x = Rows(), images(40)
    y = net(x).argmax(1)
    one, three = (Square(net, eps=0.012, queries=10, restarts=restarts)(x, y) for restarts in (1, 3))
    won = [(images != x).flatten(1).any(1) for images in (one, three)]
    assert won[0].sum() < won[1].sum()
    assert torch.equal(three[won[0]], one[won[0]])


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_targeted(loss: str) -> None:
    net, x = Rows(), images(40)
    wanted = (net(x).argmax(1) + 1) % 5
    x_adv = Square(net, eps=0.2, queries=100, loss=loss, targeted=True)(x, wanted)
    reached = net(x_adv).argmax(1) == wanted
    assert reached.double().mean() > 0.5
    assert torch.equal(x_adv[~reached], x[~reached])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(20,), (6, 9), (2, 3, 6, 6), (1, 2, 2), (3, 6, 9)])
def test_images_of_any_shape(norm: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, *shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(x[0].numel(), 4, generator=generator, dtype=torch.float64)
    asked = []

    def net(batch: Tensor) -> Tensor:
        asked.append(batch.shape[1:])
        return (batch.flatten(1) - 0.5) @ weights

    y = net(x).argmax(1)
    x_adv = Square(net, norm=norm, eps=EPS[norm], queries=60)(x, y)
    assert set(asked) == {torch.Size(shape)}
    assert (net(x_adv).argmax(1) != y).any()


def test_a_radius_for_each_image() -> None:
    net, x = Rows(), images(8)
    y, eps = net(x).argmax(1), torch.linspace(0, 0.2, 8, dtype=torch.float64)
    x_adv = Square(net, eps=eps, queries=40)(x, y)
    assert ((x_adv - x).flatten(1).abs().amax(1) <= eps + 1e-12).all()
    assert (net(x_adv).argmax(1) != y)[-1]
    for row in range(8):
        alone = Square(net, eps=float(eps[row]), queries=40)(
            x[row : row + 1], y[row : row + 1], torch.tensor([row])
        )
        assert torch.equal(alone[0], x_adv[row])


def test_a_start_of_the_callers_own() -> None:
    net, x = Rows(), images(4)
    y = net(x).argmax(1)
    start = (x + 0.01).clamp(0, 1)
    kept = start.clone()
    net.asked.clear()
    Square(net, eps=0.02, queries=5)(x, y, start=start)
    assert torch.equal(net.asked[1], start)
    assert torch.equal(start, kept)
    with pytest.raises(ValueError, match="start was given"):
        Square(net, eps=0.02, restarts=2)(x, y, start=start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": -1}, "queries is -1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"p_init": 0.0}, "p_init is 0"),
        ({"loss": "kl"}, "needs labels"),
        ({"loss": "hinge"}, "unknown loss"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        Square(Rows(), **settings)


def test_won_images_are_not_asked_again() -> None:
    net, x = Rows(), images(40)
    y = net(x).argmax(1)
    net.asked.clear()
    x_adv = Square(net, eps=0.03, queries=60)(x, y)
    left = int((x_adv == x).flatten(1).all(1).sum())
    sizes = [len(batch) for batch in net.asked[2:]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 40
    assert left <= sizes[-1] <= left + 5
