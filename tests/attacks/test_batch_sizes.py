"""How a data set is cut into batches, or shared out between processes, does not change what an attack finds."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from warm import Warm

from robustfast.attacks import ATTACKS, Attack

IMAGES, CLASSES = 1000, 10
SHORT = {
    "pgd": {"steps": 5, "restarts": 2},
    "apgd-ce": {"steps": 8},
    "apgd-t": {"steps": 5, "n_target_classes": 3},
    "fab-t": {"steps": 5, "n_target_classes": 3},
    "square": {"queries": 40},
    "autoattack": {
        "steps": 3,
        "queries": 8,
        "flags": False,
        "settings": {"apgd-t": {"n_target_classes": 2}, "fab-t": {"n_target_classes": 1}},
    },
}


class RowByRow(nn.Module):
    """A network in float64 whose every sum runs over the last dimension of a product, one row for each sample."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(12, 16, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(CLASSES, 12, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1) - 0.5)[:, None] * self.first).sum(-1)
        # Not tanh: its vectorised form and the one for what a vector leaves over differ in the last bit.
        return ((hidden / (1 + hidden.abs()))[:, None] * self.last).sum(-1)


def images(dtype: torch.dtype, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(IMAGES, 1, size, size, generator=generator, dtype=dtype)


def labels(net: nn.Module, x: Tensor) -> Tensor:
    """The model's own, but for some."""
    y = net(x).argmax(1)
    y[::20] = (y[::20] + 1) % CLASSES
    return y


def build(name: str, net: nn.Module, eps: float) -> Attack:
    return ATTACKS[name](net, norm="linf", eps=eps, seed=7, **SHORT[name])


def in_batches(attack: Attack, x: Tensor, y: Tensor, index: Tensor, size: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = zip(x.split(size), y.split(size), index.split(size), strict=True)
        return torch.cat([attack(*part) for part in parts])


def found(name: str, rows: slice, size: int) -> Tensor:
    """What the attack makes of some of the images of the float64 network."""
    net = RowByRow()
    x = images(torch.float64, 4)
    attack = build(name, net, 0.03)
    return in_batches(attack, x[rows], labels(net, x)[rows], torch.arange(IMAGES)[rows], size)


def test_the_network_goes_row_by_row() -> None:
    """What the bit-for-bit tests rest on: logits and gradients of a sample are those it has alone."""
    net, x = RowByRow(), images(torch.float64, 4).requires_grad_()
    weights = torch.arange(1.0, CLASSES + 1, dtype=torch.float64)
    whole = net(x)
    (grad,) = torch.autograd.grad((whole * weights).sum(), x)
    for size in (1, 17, 100):
        for rows in list(torch.arange(IMAGES).split(size))[:: 40 if size == 1 else 1]:
            part = net(x[rows])
            assert torch.equal(part, whole[rows])
            assert torch.equal(torch.autograd.grad((part * weights).sum(), x)[0][rows], grad[rows])


@pytest.mark.parametrize("name", SHORT)
def test_batches_of_1_17_100_and_1000_give_the_same_bits(name: str) -> None:
    whole = found(name, slice(0, IMAGES), IMAGES)
    for size in (100, 17):
        assert torch.equal(found(name, slice(0, IMAGES), size), whole)
    assert torch.equal(found(name, slice(470, 530), 1), whole[470:530])
    net, x = RowByRow(), images(torch.float64, 4)
    y = labels(net, x)
    won = (net(whole).argmax(1) != y) & (net(x).argmax(1) == y)
    assert 50 < won.sum() < 900, "some fall and some stand"


@pytest.mark.parametrize("name", SHORT)
def test_in_float32_the_same_images_are_fooled_up_to_rounding(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A convolution's sums take their order from the batch: only images at the boundary may turn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, CLASSES),
        ).eval()  # fmt: skip
        # Logits as wide as a trained network's.
        net[5].weight.data *= 20
    x = images(torch.float32, 8)
    y = labels(net, x)

    def margins(size: int) -> Tensor:
        """Of the images made in batches of `size`, judged in one way: below 0 where the model is fooled."""
        x_adv = in_batches(build(name, net, 0.02), x, y, torch.arange(IMAGES), size)
        with torch.no_grad():
            logits = net(x_adv)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        return logits.gather(1, y[:, None])[:, 0] - others

    whole = margins(IMAGES)
    turned, near = 0, 0
    for size in (100, 17):
        parts = margins(size)
        differ = (parts < 0) != (whole < 0)
        at_boundary = (parts.abs() < 1e-4) | (whole.abs() < 1e-4)
        assert not (differ & ~at_boundary).any(), parts[differ]
        turned, near = max(turned, int(differ.sum())), max(near, int(at_boundary.sum()))
    with capsys.disabled():
        print(f"{name}: {turned} of {IMAGES} turned, {near} within 1e-4 of the boundary", end=" ")
    assert turned <= 5
    assert near <= 100
    assert 50 < (whole < 0).sum() < 950, "some fall and some stand"


def test_two_processes_find_what_one_does(warm: Warm, tmp_path: Path) -> None:
    """Each takes every second image, as a sampler for several processes deals them out, in batches of its own size."""
    script = (
        "import sys, torch\n"
        f"sys.path[:0] = {list(map(str, Path(__file__).parents[:2]))!r}\n"
        "from test_batch_sizes import found\n"
        "rank = int(sys.argv[1])\n"
        "torch.save([found(name, slice(rank, None, 2), 128 + rank) for name in ('pgd', 'autoattack')], sys.argv[2])\n"
    )
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(warm.command("-c", script, str(rank), file))
            for rank, file in enumerate(files)
        ]
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    halves = [torch.load(file) for file in files]
    for name, *parts in zip(("pgd", "autoattack"), *halves, strict=True):
        together = torch.empty(IMAGES, 1, 4, 4, dtype=torch.float64)
        together[0::2], together[1::2] = parts
        assert torch.equal(together, found(name, slice(0, IMAGES), IMAGES))
