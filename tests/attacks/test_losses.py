from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustfast.attacks.losses import LOSSES, check_target, loss_function
from robustfast.errors import UserError

LOGITS = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
P = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("ce", LABELS, LOGITS.exp().sum(1).log() - torch.tensor([2.0, 1.0])),
        ("margin", LABELS, torch.tensor([-1.0, 2.0])),
        ("dlr", LABELS, torch.tensor([-1.0 / 1.5, 2.0 / 3.0])),
        ("kl", P, (P * (P.log() - LOGITS.log_softmax(1))).sum(1)),
    ],
)
def test_values_by_hand(name: str, target: Tensor, expected: Tensor) -> None:
    assert torch.allclose(loss_function(name)(LOGITS, target), expected.double(), atol=1e-10)


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
def test_gradients(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_function(name)(z, LABELS), logits)


def test_kl_is_zero_with_a_zero_gradient_where_both_agree() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = loss_function("kl")(logits, LOGITS.softmax(1))
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.abs().max() < 1e-12
    assert grad.abs().max() < 1e-12


def test_dlr_of_equal_logits_is_finite() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(loss_function("dlr")(logits, torch.tensor([0])).sum(), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_to_float32(name: str, dtype: torch.dtype) -> None:
    half = LOGITS.to(dtype)
    values = loss_function(name)(half, LABELS)
    assert values.dtype == torch.float32
    assert torch.equal(values, loss_function(name)(half.float(), LABELS))


def test_labels_out_of_range_do_not_reach_the_kernel() -> None:
    assert loss_function("ce")(LOGITS, torch.tensor([-100, 4])).isfinite().all()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (LOGITS[:, 0], r"the model returned shape \(2,\), expected logits \[2, K\] with K >= 2"),
        (LOGITS[:, :1], r"returned shape \(2, 1\)"),
        (LOGITS[:1], r"returned shape \(1, 4\)"),
        (LOGITS[None], r"returned shape \(1, 2, 4\)"),
    ],
)
def test_a_model_that_returns_no_logits(output: Tensor, message: str) -> None:
    for name in ("ce", "margin", "dlr"):
        with pytest.raises(ValueError, match=message):
            loss_function(name)(output, LABELS)


def test_a_model_that_returns_a_tuple() -> None:
    with pytest.raises(TypeError, match="the model returned tuple, expected logits"):
        loss_function("ce")((LOGITS,), LABELS)


def test_dlr_needs_three_classes() -> None:
    with pytest.raises(ValueError, match="the model returned 2; use 'margin'"):
        loss_function("dlr")(LOGITS[:, :2], torch.tensor([0, 1]))


def test_kl_needs_as_many_probabilities_as_logits() -> None:
    with pytest.raises(
        ValueError, match=r"y has shape \(2, 3\), expected that of the model's logits, \(2, 4\)"
    ):
        loss_function("kl")(LOGITS, P[:, :3])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda z, y: z.sum(), r"the loss returned shape \(\), expected one value per sample, \[2\]"),
        (lambda z, y: 1.0, "returned float"),
    ],
)
def test_a_loss_that_returns_no_value_per_sample(returned: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_function(returned)(LOGITS, LABELS)


def test_an_unknown_loss_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown loss 'cse'.*ce, dlr, kl, margin"):
        loss_function("cse")
    assert set(LOSSES) == {"ce", "margin", "dlr", "kl"}


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("loss", "y", "error", "message"),
    [
        ("ce", LABELS.int(), TypeError, "y is torch.int32, loss 'ce' expects labels in int64"),
        ("ce", P, TypeError, "y is torch.float64"),
        ("ce", LABELS[:1], ValueError, r"y has shape \(1,\), loss 'ce' expects labels \[2\]"),
        ("dlr", LABELS[:, None], ValueError, r"y has shape \(2, 1\)"),
        ("kl", LABELS, TypeError, r"y is torch.int64, loss 'kl' expects probabilities"),
        ("kl", P[:1], ValueError, r"y has shape \(1, 4\), loss 'kl' expects probabilities \[2, K\]"),
        ("ce", [0, 2], TypeError, "y is list, expected a tensor"),
        ("ce", LABELS.to("meta"), ValueError, "y is on meta, expected the device of x, cpu"),
        (lambda z, y: z.sum(1), LABELS[:1], ValueError, r"expected one target per sample, \[2, ...\]"),
    ],
)
def test_a_target_of_the_wrong_kind(loss: object, y: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_target(loss, X, y)
