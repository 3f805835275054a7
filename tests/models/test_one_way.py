"""One encoder and a linear classifier, with and without unit features; networks by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGD
from robustfast.attacks.three_way_pgd import ThreeWayPGD
from robustfast.errors import UserError
from robustfast.models import NETWORKS, OneWay, ThreeWay, network
from robustfast.objectives import AAT, AT
from robustfast.seeds import derive
from robustfast.training.config import AttackConfig


class Encoder(nn.Module):
    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * 4 * 4, self.features)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.linear(x.flatten(1))


def model(*, unit_norm: bool = False) -> OneWay:
    torch.manual_seed(0)
    return OneWay(Encoder, num_classes=5, unit_norm=unit_norm).double()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(7, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("unit_norm", [False, True])
def test_every_way_is_the_one(x: Tensor, unit_norm: bool) -> None:
    net = model(unit_norm=unit_norm)
    z = net.encoder.linear(x.flatten(1))
    if unit_norm:
        z = z / z.norm(dim=1, keepdim=True)
    expected = z @ net.classifier.weight.T + net.classifier.bias
    for ways in ("r", "n", "s", "srn"):
        net.encoder.runs = 0
        found = net.ways(x, ways)
        assert list(found) == list(ways)
        assert net.encoder.runs == 1
        for logits in found.values():
            torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.way("n")(x), expected)
    assert {id(p) for p in net.way("r").parameters()} == {id(p) for p in net.parameters()}
    assert list(net.encoders()) == ["r"]


def test_unit_features_have_length_one(x: Tensor) -> None:
    net = model(unit_norm=True)
    torch.testing.assert_close(net.features(x).norm(dim=1), torch.ones(7, dtype=torch.float64))
    # Scaling what the encoder gives changes nothing behind it.
    before = net(x)
    net.encoder.linear.weight.data *= 3
    net.encoder.linear.bias.data *= 3
    torch.testing.assert_close(net(x), before)


def test_a_zero_feature_is_no_nan(x: Tensor) -> None:
    net = model(unit_norm=True)
    for parameter in net.encoder.parameters():
        parameter.data.zero_()
    logits = net(x)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_attacks_of_all_ways_are_those_of_the_ways(x: Tensor) -> None:
    net, y = model(), torch.arange(7) % 5
    found = ThreeWayPGD(net, "rn", eps=0.1, step_size=0.05, steps=2, seed=3)(x, y)
    for way, x_adv in found.items():
        alone = PGD(net.way(way), eps=0.1, step_size=0.05, steps=2, seed=derive(3, way))
        assert torch.equal(x_adv, alone(x, y))
    with pytest.raises(ValueError, match="batched=True is for a ThreeWay network, got OneWay"):
        ThreeWayPGD(net, "rn", batched=True)


def test_networks_by_name() -> None:
    kinds = {"three_way": ThreeWay, "one_way": OneWay, "unit_norm": OneWay}
    assert kinds.items() <= {name: kinds.get(name) for name in NETWORKS}.items()
    for name, kind in kinds.items():
        built = network(name, "digits_cnn", num_classes=10, in_channels=1)
        assert isinstance(built, kind)
        assert built(torch.rand(2, 1, 8, 8)).shape == (2, 10)
        assert getattr(built, "unit_norm", False) == (name == "unit_norm")
    with pytest.raises(UserError, match="unknown network 'two_way'; did you mean 'one_way'"):
        network("two_way", "digits_cnn", num_classes=10, in_channels=1)
    with pytest.raises(UserError, match="num_classes 1: expected 2 or more"):
        OneWay(Encoder, num_classes=1)
    with pytest.raises(TypeError, match="no int attribute `features`"):
        OneWay(lambda: nn.Linear(2, 2), num_classes=3)


def test_an_objective_says_which_network_it_trains() -> None:
    assert AT(model(), AT.Config(), AttackConfig(), seed=0).model.readings == "rsn"
    with pytest.raises(
        UserError, match=r"AAT trains ways s, r, n of a ThreeWay, got a OneWay: give --network three_way$"
    ):
        AAT(model(), AAT.Config(), AttackConfig(), seed=0)
