"""PGD that stops sample by sample: who is fooled, where, and what it saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import MIM, PGD
from robustfast.attacks.attack import Attack
from robustfast.attacks.until_fooled import BLOCK

Batch = tuple[Tensor, Tensor]


class Counting(nn.Module):
    """How many images each call of the model saw."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.net(x)


@pytest.fixture
def labelled(net: nn.Module, batch: Batch) -> tuple[nn.Module, Tensor, Tensor]:
    """A batch of which the model gets all right but two."""
    net.eval()
    x = batch[0]
    y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    return net, x, y


def first_fooled(net: nn.Module, x: Tensor, y: Tensor, steps: int, **settings: Any) -> Tensor:
    """By definition: the trajectories of PGD, cut where the model is first wrong."""
    found = x.clone()
    done = torch.zeros(len(x), dtype=torch.bool)
    for step in range(steps + 1):
        here = PGD(net, steps=step, **settings)(x, y) if step else x
        found[~done] = here[~done]
        if step < steps:
            done |= net(here).argmax(1) != y
    return found


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("graph", [False, True])
def test_a_sample_stays_where_it_was_first_fooled(
    labelled: tuple[nn.Module, Tensor, Tensor],
    norm: str,
    graph: bool,
    captures: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x, y = labelled
    size = {"linf": 0.01, "l2": 0.05, "l1": 0.3}[norm]
    settings = {"eps": 8 * size, "step_size": size, "norm": norm, "random_start": False}
    expected = first_fooled(net.double(), x.double(), y, 12, **settings)
    assert 0 < (net(expected).argmax(1) == y).sum() < 6, "some must be won, some must hold"
    if graph:
        monkeypatch.setattr(Attack, "_uses_graph", lambda self, x, loop: True)
    ours = PGD(net, steps=12, early_stop=True, **settings)(x.double(), y)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    assert torch.equal(ours[:2], x[:2].double())
    assert bool(captures) is graph


def test_only_those_left_are_attacked(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = labelled
    counting = Counting(net)
    PGD(counting, 0.08, 0.01, 4 * BLOCK, random_start=False, early_stop=True)(x, y)
    assert counting.seen[:BLOCK] == [8] * BLOCK
    assert counting.seen == sorted(counting.seen, reverse=True)
    assert counting.seen[-1] < 6
    assert len(counting.seen) < 4 * BLOCK or counting.seen[-1] > 0


def test_a_restart_attacks_the_rest_alone(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = labelled
    counting = Counting(net)
    attack = PGD(counting, 0.02, 0.005, BLOCK, restarts=3, early_stop=True)
    found = attack(x, y)
    won = (net(found).argmax(1) != y).sum()
    plain = (net(PGD(net, 0.02, 0.005, BLOCK, restarts=3)(x, y)).argmax(1) != y).sum()
    assert won >= plain
    assert counting.seen[BLOCK + 1] < 8, "the second start leaves out those won in the first"


def test_momentum_goes_on_across_blocks(labelled: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, _ = labelled
    # No one is fooled by a step of no length, so all steps are taken by all.
    y = net(x).argmax(1)
    held = MIM(net, 1e-6, 1e-7, 3 * BLOCK, early_stop=True)(x, y)
    assert torch.equal(held, MIM(net, 1e-6, 1e-7, 3 * BLOCK)(x, y))


def test_the_report_counts_every_sample_once(net: nn.Module, batch: Batch) -> None:
    attack = PGD(lambda x: 0 * x.flatten(1)[:, :5], early_stop=True, steps=2 * BLOCK)
    attack(batch[0], torch.zeros(8, dtype=torch.int64))
    assert attack.report.zero_gradient == attack.report.samples == 8


def test_probabilities_tell_of_nobody_fooled(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="early_stop needs labels"):
        PGD(net, loss="kl", early_stop=True)
