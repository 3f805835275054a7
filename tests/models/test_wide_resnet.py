import pytest
import torch

from robustfast.errors import UserError
from robustfast.models import wide_resnet


def expected_parameters(depth, width):
    blocks = (depth - 4) // 6
    total, cin = 3 * 9 * 16, 16
    for cout in (16 * width, 32 * width, 64 * width):
        for _ in range(blocks):
            total += (
                2 * cin + 9 * cin * cout + 2 * cout + 9 * cout * cout + (cin * cout if cin != cout else 0)
            )
            cin = cout
    return total + 2 * cin


def test_wrn_34_10_parameter_count():
    # 46 160 474 is the known count with the 640 -> 10 output layer (46.2 M in the papers).
    count = sum(p.numel() for p in wide_resnet(34, 10).parameters())
    assert count == expected_parameters(34, 10) == 46_160_474 - (640 + 1) * 10


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (10, 4), (16, 2)])
def test_any_depth_and_width(depth, width):
    model = wide_resnet(depth, width).eval()
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(depth, width)
    assert model.features == 64 * width
    features = model(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 64 * width)
    assert (features >= 0).all()


def test_no_dropout():
    assert not any(isinstance(module, torch.nn.Dropout) for module in wide_resnet(10, 1).modules())


@pytest.mark.parametrize("depth", [4, 12, 18, 33, -2])
def test_impossible_depth_is_refused_in_one_line(depth):
    with pytest.raises(
        UserError, match=rf"^wide_resnet depth {depth}: expected 6n \+ 4 with n >= 1: 10, 16, 22.*$"
    ):
        wide_resnet(depth, 10)


def test_width_below_one_is_refused():
    with pytest.raises(UserError, match="wide_resnet width 0: expected 1 or more"):
        wide_resnet(10, 0)
