"""Gradient maps: the gradient itself, clipped at three deviations of each image, on a scale from 0 to 1."""

import pytest
import torch
from torch import nn

from robustfast.evaluation.gradient_maps import gradient_map, input_gradient
from robustfast.models import ThreeWay


def linear(weight):
    return lambda x: x.flatten(1) @ weight


def test_gradient_is_that_of_the_cross_entropy_by_hand():
    weight = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    x, y = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    missed = (x.flatten(1) @ weight).softmax(1) - nn.functional.one_hot(y, 3)
    expected = (missed @ weight.T).view_as(x)
    torch.testing.assert_close(input_gradient(linear(weight), x, y), expected)


def test_map_is_clipped_at_three_deviations_and_grey_at_the_mean():
    weight = torch.zeros(100, 2)
    weight[:, 1] = torch.linspace(-1, 1, 100)
    weight *= 0.02
    weight[0, 1] = 1.0
    x, y = torch.rand(2, 1, 10, 10), torch.tensor([0, 1])
    grad = input_gradient(linear(weight), x, y)
    found = gradient_map(linear(weight), x, y)
    for image, values in zip(found, grad, strict=True):
        mean, deviation = values.mean(), values.std(correction=0)
        expected = ((values - mean) / (3 * deviation)).clamp(-1, 1) / 2 + 0.5
        torch.testing.assert_close(image, expected)
    assert found[0, 0, 0, 0] == 1
    assert found[1, 0, 0, 0] == 0
    torch.testing.assert_close(gradient_map(linear(weight), x[:1], y[:1]), found[:1])


def test_no_gradient_is_grey():
    found = gradient_map(lambda x: x.flatten(1)[:, :2] * 0, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))
    assert torch.all(found == 0.5)


@pytest.mark.parametrize("way", ["s", "r", "n"])
def test_model_is_left_as_found(way):
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gradient_map(model.way(way), torch.rand(3, 1, 8, 8), torch.tensor([1, 2, 3]))
    assert found.shape == (3, 1, 8, 8)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
