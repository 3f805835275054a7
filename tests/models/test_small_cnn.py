import math

import pytest
import torch
from torch import nn

from robustfast.models import SmallCNN


def test_parameter_count_is_the_papers_architecture():
    conv = (1 * 9 + 1) * 32 + (32 * 9 + 1) * 32 + (32 * 9 + 1) * 64 + (64 * 9 + 1) * 64
    linear = (1024 + 1) * 200 + (200 + 1) * 200
    # 312 202 is TRADES' SmallCNN; AAT removes its output layer, 200 -> 10 with bias.
    assert sum(p.numel() for p in SmallCNN().parameters()) == conv + linear == 312_202 - (200 + 1) * 10


def test_images_to_200_features():
    model = SmallCNN()
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, model.features) == (3, 200)


def test_convolutions_start_kaiming_fan_in_with_zero_bias():
    torch.manual_seed(0)
    convolutions = [layer for layer in SmallCNN().modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4
    for layer in convolutions[1:]:
        fan_in = layer.in_channels * 9
        # Fan out would give sqrt(2 / 576) instead of sqrt(2 / 288) for the third convolution.
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)
        assert not layer.bias.any()


def test_dropout_acts_in_train_mode_only():
    model, x = SmallCNN(), torch.rand(2, 1, 28, 28)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_other_image_sizes_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"small_cnn takes 28x28 images, got \(2, 1, 32, 32\)"):
        SmallCNN()(torch.rand(2, 1, 32, 32))
