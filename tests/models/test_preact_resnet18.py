import torch
from torch import nn

from robustfast.models import PreActResNet18


def block(cin, cout):
    shortcut = cin * cout if cin != cout else 0
    return 2 * cin + 9 * cin * cout + 2 * cout + 9 * cout * cout + shortcut


def test_parameter_count_has_no_final_batch_norm():
    pairs = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    expected = 3 * 9 * 64 + sum(block(*pair) for pair in pairs)
    # 11 171 146 is the known count of the version with a 512 -> 10 output layer and no final batch norm.
    assert sum(p.numel() for p in PreActResNet18().parameters()) == expected == 11_171_146 - (512 + 1) * 10


def test_images_of_any_size_to_512_features():
    model = PreActResNet18(in_channels=1).eval()
    assert model.features == 512
    for size in (8, 28, 32):
        assert model(torch.rand(2, 1, size, size)).shape == (2, 512)


def test_features_are_the_mean_of_a_raw_sum():
    # A final ReLU would make every feature non-negative.
    torch.manual_seed(0)
    assert (PreActResNet18().eval()(torch.rand(2, 3, 32, 32)) < 0).any()


def test_shortcut_convolves_the_activated_tensor():
    torch.manual_seed(0)
    first_of_stage = PreActResNet18().eval().blocks[2]
    x = torch.randn(2, 64, 8, 8)
    nn.init.zeros_(first_of_stage.conv2.weight)
    expected = first_of_stage.shortcut(torch.relu(first_of_stage.norm1(x)))
    assert torch.equal(first_of_stage(x), expected)
    same_shape = PreActResNet18().eval().blocks[1]
    nn.init.zeros_(same_shape.conv2.weight)
    assert torch.equal(same_shape(x), x)


def test_forward_leaves_the_image_alone():
    # The activations are computed in place; the caller's tensor must not be.
    x = torch.randn(2, 3, 16, 16)
    before = x.clone()
    PreActResNet18()(x)
    assert torch.equal(x, before)
