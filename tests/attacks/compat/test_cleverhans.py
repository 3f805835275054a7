"""The functions of cleverhans, against plain loops written from its documentation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks.compat import cleverhans
from robustfast.attacks.compat.cleverhans import (
    carlini_wagner_l2,
    fast_gradient_method,
    projected_gradient_descent,
)

Batch = tuple[Tensor, Tensor]


def gradient(model: nn.Module, x: Tensor, y: Tensor, targeted: bool) -> Tensor:
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    return -grad if targeted else grad


def step(grad: Tensor, norm: float, length: float) -> Tensor:
    """The step of that length in that norm that a linear loss gains most from; ties share it."""
    flat = grad.flatten(1)
    if norm == np.inf:
        return length * grad.sign()
    if norm == 2:
        return length * grad / flat.norm(dim=1).reshape(-1, 1, 1, 1)
    largest = (flat.abs() == flat.abs().amax(1, keepdim=True)).float()
    return (length * flat.sign() * largest / largest.sum(1, keepdim=True)).view_as(grad)


@pytest.mark.parametrize("clip", [(None, None), (0.0, 1.0)])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.03), (2, 0.5), (1, 3.0)])
def test_one_step_is_the_documented_one(
    net: nn.Module, batch: Batch, norm: float, eps: float, targeted: bool, clip: tuple[Any, Any]
) -> None:
    net.eval()
    x, y = batch
    expected = x + step(gradient(net, x, y, targeted), norm, eps)
    expected = expected if clip[0] is None else expected.clamp(*clip)
    found = fast_gradient_method(net, x, eps, norm, *clip, y=y, targeted=targeted)
    assert torch.allclose(found, expected, rtol=0, atol=0 if norm == np.inf else 1e-6)
    guessed = fast_gradient_method(net, x, eps, norm, *clip)
    assert torch.equal(guessed, fast_gradient_method(net, x, eps, norm, *clip, y=net(x).argmax(1)))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [(np.inf, 0.03), (2, 0.5)])
def test_steps_are_clipped_before_they_are_projected(
    net: nn.Module, batch: Batch, norm: float, eps: float, targeted: bool
) -> None:
    net.eval()
    x, y = batch
    adv = x
    for _ in range(6):
        adv = (adv + step(gradient(net, adv, y, targeted), norm, eps / 3)).clamp(0, 1)
        delta = adv - x
        if norm == np.inf:
            delta = delta.clamp(-eps, eps)
        else:
            delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, 1, 1, 1)
        adv = (x + delta).clamp(0, 1)
    found = projected_gradient_descent(net, x, eps, eps / 3, 6, norm, 0, 1, y, targeted, rand_init=False)
    assert torch.allclose(found, adv, rtol=0, atol=1e-6)
    if norm == 2:
        from robustfast.attacks import PGD

        other = PGD(net, eps, eps / 3, 6, "l2", random_start=False, targeted=targeted)(x, y)
        assert not torch.allclose(found, other, rtol=0, atol=1e-4), "the order was to matter here"


def test_the_start_is_uniform_per_pixel_then_projected(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x = 0.4 + 0.2 * batch[0]
    wide = projected_gradient_descent(net, x, 0.1, 0.1, 0, np.inf, rand_minmax=0.05) - x
    assert 0.045 < wide.abs().max() <= 0.05 + 1e-6
    assert wide.std() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    ball = projected_gradient_descent(net, x, 0.5, 0.1, 0, 2, 0, 1) - x
    assert torch.allclose(ball.flatten(1).norm(dim=1), torch.tensor(0.5), atol=1e-5)


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_nothing_asked_is_nothing_done(net: nn.Module, batch: Batch, norm: float) -> None:
    x = batch[0]
    assert fast_gradient_method(net, x, 0, norm) is x
    assert projected_gradient_descent(net, x, 0, 0.1, 5, norm) is x
    assert projected_gradient_descent(net, x, 0.1, 0, 5, norm) is x


def test_wrong_arguments_are_refused(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x = batch[0]
    for call in (
        lambda: fast_gradient_method(net, x, -1, np.inf),
        lambda: fast_gradient_method(net, x, 0.1, 3),
        lambda: fast_gradient_method(net, x, 0.1, np.inf, clip_min=0),
        lambda: fast_gradient_method(net, x, 0.1, np.inf, 1, 0),
        lambda: projected_gradient_descent(net, x, -1, 0.1, 5, np.inf),
        lambda: projected_gradient_descent(net, x, 0.1, -0.1, 5, np.inf),
        lambda: projected_gradient_descent(net, x, 0.1, 0.1, 5, 3),
        lambda: fast_gradient_method(net, x * 2, 0.1, np.inf, 0, 1),
    ):
        with pytest.raises(ValueError, match=r"eps|[Nn]orm|clip|pixels"):
            call()
    with pytest.raises(NotImplementedError, match="norm=1"):
        projected_gradient_descent(net, x, 0.1, 0.1, 5, 1)
    with pytest.raises(AssertionError):
        projected_gradient_descent(net, x, 0.1, 0.2, 5, np.inf)
    with pytest.raises(AssertionError):
        projected_gradient_descent(net, x, 1.5, 0.2, 5, np.inf, 0, 1)
    with pytest.raises(AttributeError, match="no counterpart"):
        _ = cleverhans.hop_skip_jump_attack


def test_carlini_and_wagner_fools_with_little(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x = batch[0]
    y = net(x).argmax(1)
    settings = {"max_iterations": 50, "binary_search_steps": 3, "initial_const": 10.0, "lr": 0.02}
    found = carlini_wagner_l2(net, x, 5, **settings)
    fooled = net(found).argmax(1) != y
    assert fooled.sum() >= 6
    assert torch.equal(found[~fooled], x[~fooled])
    second = net(x).topk(2, dim=1).indices[:, 1]
    wanted = carlini_wagner_l2(net, x, 5, y=second, targeted=True, **settings)
    assert (net(wanted).argmax(1) == second).sum() >= 6


def test_an_unmodified_script_runs(make_net: Any, batch: Batch) -> None:
    """As the tutorial's adversarial training goes, in other words: only the import differs."""
    net, (x, y) = make_net(), batch
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss_fn = nn.CrossEntropyLoss(reduction="mean")
    net.train()
    before = copy.deepcopy(dict(net.named_buffers()))
    for _ in range(2):
        adv = projected_gradient_descent(net, x, 0.3, 0.01, 3, np.inf)
        assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
        optimizer.zero_grad()
        loss = loss_fn(net(adv), y)
        loss.backward()
        optimizer.step()
        before = copy.deepcopy(dict(net.named_buffers()))
    net.eval()
    for adv in (
        fast_gradient_method(net, x, 0.3, np.inf),
        projected_gradient_descent(net, x, 0.3, 0.01, 4, np.inf),
    ):
        assert adv.shape == x.shape
        assert adv.dtype == x.dtype
        _, predicted = net(adv).max(1)
        assert 0 <= predicted.eq(y).sum().item() <= 8
