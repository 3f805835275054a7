import pytest
import torch
from torch import nn

from robustfast.objectives import invert


def test_a_known_encoder_is_inverted_in_a_straight_line():
    # Through the identity every step moves step_size along the line to the target.
    start, target = torch.full((2, 1, 4, 4), 0.2), torch.full((2, 1, 4, 4), 0.8)
    whole = (target - start).flatten(1).norm(dim=1)  # 2.4
    x, ratio = invert(nn.Flatten(), target, start, steps=10, step_size=0.1)
    torch.testing.assert_close((x - start).flatten(1).norm(dim=1), torch.full((2,), 1.0))
    torch.testing.assert_close(ratio, (whole - 1.0) / target.flatten(1).norm(dim=1))
    assert not x.requires_grad


def test_representation_comes_close_and_pixels_stay_in_the_box(digits_model):
    target, start = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    encoder = digits_model.encoder_r
    _, at_first = invert(encoder, target, start, steps=1, step_size=1e-6)
    x, ratio = invert(encoder, target, start, steps=200, step_size=0.05)
    assert (ratio < 0.25 * at_first).all()
    assert x.min() >= 0
    assert x.max() <= 1


def test_a_start_at_the_target_stays_there():
    x = torch.rand(2, 1, 4, 4)
    found, ratio = invert(nn.Flatten(), x, x, steps=3)
    assert torch.equal(found, x)
    assert not ratio.any()


def test_model_is_left_as_it_was(digits_model):
    encoder = digits_model.encoder_r
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    target = torch.rand(2, 1, 8, 8)
    with torch.no_grad():  # a caller's no_grad must not stop the descent
        x, _ = invert(encoder, target, torch.rand(2, 1, 8, 8), steps=2)
    assert all(module.training for module in encoder.modules())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert x.isfinite().all()


def test_bad_input_is_refused_in_one_line():
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(
        ValueError, match=r"start has shape \(1, 1, 4, 4\), expected that of target, \(2, 1, 4, 4\)"
    ):
        invert(nn.Flatten(), x, x[:1])
    for settings in ({"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}):
        with pytest.raises(ValueError, match="expected at least 1 and above 0"):
            invert(nn.Flatten(), x, x, **settings)
