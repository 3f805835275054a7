import torch
from torch import nn

from robustfast.models import MODELS, ResNet18
from robustfast.models.basic_block import BasicBlock


def test_parameter_count_is_the_known_one() -> None:
    # 11 173 962 is that of the CIFAR version with a 512 -> 10 output layer.
    assert sum(p.numel() for p in ResNet18().parameters()) == 11_173_962 - (512 + 1) * 10
    assert MODELS["resnet18"] is ResNet18


def test_images_of_any_size_to_512_features_that_are_not_negative() -> None:
    torch.manual_seed(0)
    model = ResNet18(in_channels=1).eval()
    for size in (8, 28, 32):
        features = model(torch.rand(2, 1, size, size))
        assert features.shape == (2, ResNet18.features) == (2, 512)
        assert (features >= 0).all()
    assert ResNet18()(torch.rand(2, 3, 32, 32)).shape == (2, 512)


def test_forward_leaves_the_image_alone() -> None:
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    ResNet18()(x)
    assert torch.equal(x, before)


def test_a_block_is_its_shortcut_plus_the_normalised_residual() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6)
    same, changed = BasicBlock(4, 4, stride=1), BasicBlock(4, 8, stride=2)
    for block, shape in ((same, (3, 4, 6, 6)), (changed, (3, 8, 3, 3))):
        nn.init.constant_(block.norm2.weight, 0.0)
        nn.init.constant_(block.norm2.bias, 0.25)
        assert block(x).shape == shape
    assert torch.equal(same(x), torch.relu(x + 0.25))
    assert torch.equal(changed.eval()(x), torch.relu(changed.shortcut(x) + 0.25))
    assert [type(part) for part in changed.shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    assert all(part.bias is None for part in changed.modules() if isinstance(part, nn.Conv2d))
