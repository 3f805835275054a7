from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustfast.attacks import eval_mode
from robustfast.attacks.modes import module_of
from robustfast.models import ThreeWay


def modes(net: nn.Module) -> list[bool]:
    return [part.training for part in net.modules()]


def test_every_submodule_gets_its_own_mode_back(net: nn.Module) -> None:
    net[1].eval()  # a batch norm its owner froze
    before = modes(net)
    assert set(before) == {True, False}
    with eval_mode(net):
        assert not any(modes(net))
    assert modes(net) == before


def test_modes_come_back_after_an_exception(net: nn.Module) -> None:
    net[6].eval()
    before = modes(net)
    with pytest.raises(KeyError), eval_mode(net, batch_norm="batch"):
        raise KeyError
    assert modes(net) == before
    assert net[1].track_running_stats


def test_batch_statistics_leave_the_buffers_alone(net: nn.Module) -> None:
    x = torch.rand(8, 3, 8, 8)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with eval_mode(net, batch_norm="batch"):
        inside = net[1](net[0](x))
        assert not net[6].training, "dropout stays off"
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name
    plain = nn.BatchNorm2d(6)
    plain.load_state_dict(net[1].state_dict())
    assert torch.equal(inside, plain.train()(net[0](x)))


def test_batch_statistics_are_used_where_the_model_is_in_eval_mode(net: nn.Module) -> None:
    x = torch.rand(8, 3, 8, 8)
    net.eval()
    with eval_mode(net):
        by_buffers = net(x)
    with eval_mode(net, batch_norm="batch"):
        by_batch = net(x)
    assert not torch.allclose(by_buffers, by_batch)
    assert not any(modes(net))


def test_one_way_reaches_the_whole_model() -> None:
    model = ThreeWay("digits_cnn", num_classes=3, in_channels=1)
    with eval_mode(model.way("r")):
        assert not any(modes(model))
    assert all(modes(model))


def test_the_module_behind_a_callable(net: nn.Module) -> None:
    model = ThreeWay("digits_cnn", num_classes=3, in_channels=1)
    assert module_of(net) is net
    assert module_of(net.forward) is net
    assert module_of(model.way("n")) is model
    assert module_of(lambda x: net(x)) is None


def test_a_plain_callable_is_left_alone(net: nn.Module) -> None:
    model: Callable[..., object] = lambda x: net(x)  # noqa: E731
    with eval_mode(model):
        assert all(modes(net))


def test_unknown_batch_norm_is_refused(net: nn.Module) -> None:
    with (
        pytest.raises(ValueError, match="batch_norm is 'train', expected 'eval' or 'batch'"),
        eval_mode(net, batch_norm="train"),
    ):
        pass
