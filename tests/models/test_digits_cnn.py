import pytest
import torch

from robustfast.models import DigitsCNN


def test_parameter_count():
    convolutions = 9 * (1 * 64 + 64 * 64) + 2 * (64 + 64)
    assert sum(p.numel() for p in DigitsCNN().parameters()) == convolutions + (1024 + 1) * 128


def test_images_to_features():
    model = DigitsCNN()
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, model.features)


def test_other_image_sizes_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"digits_cnn takes 8x8 images, got \(2, 1, 28, 28\)"):
        DigitsCNN()(torch.rand(2, 1, 28, 28))
