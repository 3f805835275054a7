from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from robustfast.errors import UserError
from robustfast.models import MODELS, OneWay, ResNet50
from robustfast.models.resnet50 import Bottleneck
from robustfast.training.start import start_from

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_names() -> Iterator[str]:
    """The keys of torchvision's resnet50 in their order, without its output layer."""
    yield "conv1.weight"
    yield from (f"bn1.{name}" for name in NORM)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            at = f"layer{stage}.{block}"
            for number in (1, 2, 3):
                yield f"{at}.conv{number}.weight"
                yield from (f"{at}.bn{number}.{name}" for name in NORM)
            if block == 0:
                yield f"{at}.downsample.0.weight"
                yield from (f"{at}.downsample.1.{name}" for name in NORM)


@pytest.fixture(scope="module")
def model() -> ResNet50:
    torch.manual_seed(0)
    return ResNet50().eval()


def test_names_and_parameters_are_those_of_torchvision(model: ResNet50) -> None:
    assert list(model.state_dict()) == list(torchvision_names())
    # 25 557 032 is the known count with the 2048 -> 1000 output layer.
    assert sum(p.numel() for p in model.parameters()) == 25_557_032 - (2048 + 1) * 1000
    assert MODELS["resnet50"] is ResNet50


def test_a_bottleneck_is_written_out_and_strides_in_its_3x3() -> None:
    torch.manual_seed(0)
    block, x = Bottleneck(6, 4, stride=2).eval(), torch.randn(2, 6, 8, 8)
    before = x.clone()
    inside = F.relu(block.bn1(block.conv1(x)))
    assert inside.shape == (2, 4, 8, 8)
    inside = F.relu(block.bn2(block.conv2(inside)))
    assert inside.shape == (2, 4, 4, 4)
    assert torch.equal(block(x), F.relu(block.bn3(block.conv3(inside)) + block.downsample(x)))
    assert torch.equal(x, before)
    assert Bottleneck(16, 4, stride=1).downsample is None


def test_images_of_any_size_and_taps_before_they_are_pooled(model: ResNet50) -> None:
    seen, x = {}, torch.rand(2, 3, 64, 64)
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
        for name in model.taps
    ]
    features = model(x)
    for hook in hooks:
        hook.remove()
    shapes = [(64, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]
    assert [tuple(maps.shape[1:]) for maps in seen.values()] == shapes
    torch.testing.assert_close(seen["relu"], F.relu(model.bn1(model.conv1(x))))
    torch.testing.assert_close(seen["layer4"].mean((2, 3)), features)
    assert (features >= 0).all()
    assert features.shape == (2, ResNet50.features)
    with torch.device("meta"):
        assert ResNet50(in_channels=1)(torch.empty(2, 1, 224, 224)).shape == (2, 2048)


def test_a_run_starts_from_a_file_of_torchvision(model: ResNet50, tmp_path: Path) -> None:
    state = {**model.state_dict(), "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet50.pth")
    network = OneWay("resnet50", num_classes=9, in_channels=3)
    said: list[str] = []
    start_from(network, (f"encoder={tmp_path}/resnet50.pth",), say=said.append)
    assert all(torch.equal(v, state[key]) for key, v in network.encoder.state_dict().items())
    assert said[0].endswith("encoder without fc.weight, fc.bias")
    with pytest.raises(UserError, match="it holds other weights than encoder has, first") as refused:
        start_from(
            OneWay("resnet18", num_classes=9, in_channels=3), (f"encoder={tmp_path}/resnet50.pth",), say=print
        )
    assert len(str(refused.value).splitlines()) == 1
