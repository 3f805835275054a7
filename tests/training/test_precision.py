"""Precision: what runs in the short type and what stays in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustfast.errors import UserError
from robustfast.training import precision as precision_module
from robustfast.training.precision import PRECISIONS, LossScale, Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_convolutions_are_short_and_statistics_are_not(name: str, dtype: torch.dtype) -> None:
    convolution, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    with Precision(name, CPU).autocast():
        y = convolution(torch.rand(4, 1, 8, 8))
        loss = nn.functional.cross_entropy(norm(y).mean((2, 3)), torch.tensor([0, 1, 0, 1]))
    assert y.dtype == dtype
    assert loss.dtype == torch.float32
    assert norm.running_mean.dtype == convolution.weight.dtype == torch.float32


def test_a_pass_without_gradients_does_not_cut_those_of_the_next() -> None:
    linear = nn.Linear(2, 2)
    runner = Precision("bf16", CPU)
    with runner.autocast():
        with torch.no_grad():
            linear(torch.ones(1, 2))
        loss = linear(torch.ones(1, 2)).float().sum()
    loss.backward()
    assert torch.equal(linear.weight.grad, torch.ones(2, 2))


def test_only_half_precision_scales_its_losses() -> None:
    assert [Precision(name, CPU).loss_scale() is not None for name in PRECISIONS] == [False, False, True]


def test_the_loss_scale_is_torchs() -> None:
    """Against `torch.amp.GradScaler`: what the gradients become, what counts as an overflow, how the scale moves."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = LossScale(CPU)
    ours.INTERVAL = 3  # type: ignore[misc]
    fine, huge = torch.tensor([0.25, 0.0, -3.0]), torch.tensor([0.25, float("inf"), 0.0])
    for gradient in (fine, huge, huge, fine, fine, fine, fine, torch.full((3,), float("nan")), fine):
        weight.grad = theirs.scale(gradient.clone())
        mine = gradient * ours.value
        before = weight.detach().clone()
        theirs.step(optimizer)
        theirs.update()
        overflow = ours.unscale([mine])
        ours.update(overflow)
        assert bool(overflow) == torch.equal(weight, before)
        if not overflow:
            assert torch.equal(mine, gradient)
        assert float(ours.value) == theirs.get_scale()


def test_without_gradients_nothing_overflows() -> None:
    assert float(LossScale(CPU).unscale([])) == 0


def test_unknown_and_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown precision 'fp61'; did you mean 'fp16'"):
        Precision("fp61", CPU)

    def missing(*args: object) -> None:
        raise RuntimeError("could not create a primitive\nmore")

    monkeypatch.setattr(precision_module.nn.functional, "conv2d", missing)
    with pytest.raises(
        UserError, match=r"--precision fp16: .* on cpu \(could not create a primitive\); use --precision fp32"
    ):
        Precision("fp16", CPU)
