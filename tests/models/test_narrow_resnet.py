import torch

from robustfast.models import MODELS, NarrowResNet


def block(cin: int, cout: int) -> int:
    shortcut = cin * cout + 2 * cout
    return 9 * cin * cout + 2 * cout + 9 * cout * cout + 2 * cout + shortcut


def test_widths_by_the_parameter_count() -> None:
    # Each stage begins with a stride and so with a shortcut of its own, the first too; its second block has none.
    expected = 9 * 16 + 2 * 16
    for cin, cout in ((16, 16), (16, 32), (32, 48), (48, 64)):
        expected += block(cin, cout) + 2 * (9 * cout * cout + 2 * cout)
    assert sum(p.numel() for p in NarrowResNet().parameters()) == expected
    assert MODELS["narrow_resnet"] is NarrowResNet


def test_every_stage_halves_the_maps_of_an_mnist_image() -> None:
    model = NarrowResNet().eval()
    sides: list[int] = []
    for part in (model.stem, *model.blocks):
        part.register_forward_hook(lambda _, __, maps: sides.append(maps.shape[-1]))
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, NarrowResNet.features) == (2, 64)
    assert sides == [14, 7, 7, 4, 4, 2, 2, 1, 1]


def test_smaller_and_coloured_images() -> None:
    torch.manual_seed(0)
    assert NarrowResNet()(torch.rand(2, 1, 8, 8)).shape == (2, 64)
    features = NarrowResNet(in_channels=3).eval()(torch.rand(2, 3, 32, 32))
    assert features.shape == (2, 64)
    assert (features >= 0).all()
