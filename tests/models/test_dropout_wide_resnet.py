from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustfast.errors import UserError
from robustfast.models import MODELS, DropoutWideResNet, backbone, dropout_wide_resnet
from robustfast.models.dropout_wide_resnet import DropoutBlock


def expected_parameters(depth: int, width: int) -> int:
    blocks = (depth - 4) // 6
    total, before = (3 * 9 + 1) * 16, 16
    for after in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += 2 * before + (9 * before + 1) * after + 2 * after + (9 * after + 1) * after
            total += (before + 1) * after if before != after else 0
            before = after
    return total + 2 * before


@pytest.mark.parametrize(("depth", "width"), [(28, 10), (10, 1), (16, 2)])
def test_every_convolution_has_a_bias(depth: int, width: int) -> None:
    with torch.device("meta"):
        model = dropout_wide_resnet(depth, width)
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(depth, width)
    assert model.features == 64 * width
    assert [len(group) for group in model.groups] == [(depth - 4) // 6] * 3


def test_by_name() -> None:
    with torch.device("meta"):
        assert isinstance(MODELS["wide_resnet28_10_dropout"](in_channels=3), DropoutWideResNet)
    small = backbone("wide_resnet10_1_dropout", in_channels=1).eval()
    assert isinstance(small, DropoutWideResNet)
    features = small(torch.rand(2, 1, 28, 28))
    assert features.shape == (2, 64)
    assert (features >= 0).all()


def test_a_block_is_written_out() -> None:
    torch.manual_seed(0)
    block, x = DropoutBlock(3, 5, stride=2, dropout=0.3).eval(), torch.randn(2, 3, 8, 8)
    before = x.clone()
    inside = block.conv1(F.relu(block.norm1(x)))
    # The first convolution keeps the size: the second one strides.
    assert inside.shape == (2, 5, 8, 8)
    expected = block.conv2(F.relu(block.norm2(inside))) + block.shortcut(x)
    assert expected.shape == (2, 5, 4, 4)
    assert torch.equal(block(x), expected)
    assert torch.equal(x, before)
    assert DropoutBlock(4, 4, stride=1, dropout=0.3).shortcut is None
    same = DropoutBlock(4, 4, stride=1, dropout=0.3).eval()
    nn.init.zeros_(same.conv2.weight)
    nn.init.zeros_(same.conv2.bias)
    raw = -torch.rand(1, 4, 6, 6)
    assert torch.equal(same(raw), raw)


def test_dropout_is_of_thirty_percent_and_off_in_eval_mode() -> None:
    torch.manual_seed(0)
    model, x = dropout_wide_resnet(10, 1), torch.rand(2, 3, 16, 16)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [module.p for module in dropouts] == [0.3] * 3
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_last_batch_norm_forgets_fast_the_others_not() -> None:
    momenta = [m.momentum for m in dropout_wide_resnet(10, 1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert momenta == [0.1] * 6 + [0.9]


def test_taps_are_the_stem_and_the_groups_before_the_last_batch_norm() -> None:
    torch.manual_seed(0)
    model, x, seen = dropout_wide_resnet(10, 2).eval(), torch.rand(2, 3, 32, 32), {}
    for name in model.taps:
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
    features = model(x)
    assert [maps.shape[1:] for maps in seen.values()] == [
        (16, 32, 32),
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
    ]
    torch.testing.assert_close(F.relu(model.norm(seen["groups.2"])).mean((2, 3)), features)
    assert (seen["groups.2"] < 0).any()


@pytest.mark.parametrize("depth", [4, 12, 27, -2])
def test_impossible_depth_is_refused_in_one_line(depth: int) -> None:
    with pytest.raises(
        UserError, match=rf"^wide_resnet depth {depth}: expected 6n \+ 4 with n >= 1: 10, 16, 22.*$"
    ):
        dropout_wide_resnet(depth, 10)


def test_width_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="wide_resnet width 0: expected 1 or more"):
        backbone("wide_resnet10_0_dropout", in_channels=3)
