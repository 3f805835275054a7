"""`attack_pgd` and `trades_loss`, against plain loops written from the papers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks.compat import fast_adversarial, robust_overfitting, trades

Batch = tuple[Tensor, Tensor]


def plain_linf(
    model: nn.Module, x: Tensor, y: Tensor, start: Tensor, eps: Tensor, alpha: Tensor, steps: int, lo: Tensor,
    hi: Tensor,
) -> Tensor:  # fmt: skip
    """Rice et al. and Wong et al.: sign steps on delta while the sample is classified rightly."""
    delta = start.clone()
    for _ in range(steps):
        leaf = delta.clone().requires_grad_()
        logits = model(x + leaf)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
        moved = torch.maximum(torch.minimum(delta + alpha * grad.sign(), eps), -eps)
        moved = torch.maximum(torch.minimum(moved, hi - x), lo - x)
        right = (logits.argmax(1) == y).reshape(-1, 1, 1, 1)
        delta = torch.where(right, moved, delta)
    return delta


def normalised(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in
                 (fast_adversarial.cifar10_mean, fast_adversarial.cifar10_std))  # fmt: skip
    return (x - mean) / std, (8 / 255) / std, (2 / 255) / std, std


def test_the_normalised_form_is_the_papers_loop(
    make_net: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, (x, y) = make_net().eval(), batch
    X, eps, alpha, std = normalised(x)
    draws = torch.rand(3, *x.shape, generator=torch.Generator().manual_seed(5))
    given = iter(draws)
    monkeypatch.setattr(fast_adversarial, "uniform", lambda *_, **__: next(given))
    lo, hi = fast_adversarial.lower_limit, fast_adversarial.upper_limit
    best, highest = torch.zeros_like(X), torch.zeros(len(X))
    for draw in draws:
        start = torch.maximum(torch.minimum(eps * (2 * draw - 1), hi - X), lo - X)
        delta = plain_linf(net, X, y, start, eps, alpha, 6, lo, hi)
        loss = F.cross_entropy(net(X + delta), y, reduction="none").detach()
        best = torch.where((loss >= highest).reshape(-1, 1, 1, 1), delta, best)
        highest = torch.maximum(highest, loss)
    found = fast_adversarial.attack_pgd(net, X, y, eps, alpha, 6, 3)
    assert torch.allclose(found, best, rtol=0, atol=1e-6)
    assert (found * std).abs().max() == pytest.approx(8 / 255, abs=1e-6)
    assert found.shape == X.shape
    assert not found.requires_grad


def test_images_outside_the_limits_are_refused(net: nn.Module, batch: Batch) -> None:
    X, eps, alpha, _ = normalised(batch[0])
    with pytest.raises(ValueError, match="lower_limit and upper_limit"):
        fast_adversarial.attack_pgd(net.eval(), 3 * X, batch[1], eps, alpha, 1, 1)
    with pytest.raises(
        ValueError, match=r"upper_limit are CIFAR-10's unless given, of 3 channels.*: give your own"
    ):
        fast_adversarial.attack_pgd(net, X[:, :1], batch[1], 0.1, 0.025, 5, 1)
    with pytest.raises(ValueError, match=r"epsilon has shape \(2, 1, 1\) and X"):
        fast_adversarial.attack_pgd(net, X, batch[1], eps[:2], alpha, 5, 1)
    delta = fast_adversarial.attack_pgd(
        net, batch[0], batch[1], 0.03, 0.01, 2, 1, None, lower_limit=0.0, upper_limit=1.0
    )
    assert delta.abs().max() <= 0.03 + 1e-6
    assert torch.equal(fast_adversarial.attack_pgd(net, X, batch[1], eps, alpha, 2, 0), torch.zeros_like(X))


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("norm", ["l_inf", "l_2"])
def test_the_pixel_form_is_the_papers_loop(
    make_net: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, norm: str, early_stop: bool
) -> None:
    net, (x, y) = make_net().eval(), batch
    eps, alpha, steps = (8 / 255, 2 / 255, 5) if norm == "l_inf" else (0.5, 0.15, 5)
    starts = []
    real = robust_overfitting._ByLabel.__call__
    monkeypatch.setattr(
        robust_overfitting._ByLabel,
        "__call__",
        lambda self, x, target, *, start: (starts.append(start), real(self, x, target, start=start))[1],
    )
    found = robust_overfitting.attack_pgd(net, x, y, eps, alpha, steps, 2, norm, early_stop=early_stop)
    assert len(starts) == 2
    assert not torch.equal(*starts)
    best, highest = torch.zeros_like(x), torch.zeros(len(x))
    for start in starts:
        delta = start - x
        length = delta.flatten(1).norm(dim=1).max() if norm == "l_2" else delta.abs().max()
        assert 0.3 * eps < length <= eps * (1 + 1e-6)
        for _ in range(steps):
            leaf = delta.clone().requires_grad_()
            logits = net(x + leaf)
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
            if norm == "l_inf":
                moved = (delta + alpha * grad.sign()).clamp(-eps, eps)
            else:
                unit = grad / (grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) + 1e-10)
                moved = (delta + alpha * unit).renorm(p=2, dim=0, maxnorm=eps)
            moved = torch.maximum(torch.minimum(moved, 1 - x), -x)
            right = (logits.argmax(1) == y).reshape(-1, 1, 1, 1)
            delta = torch.where(right, moved, delta) if early_stop else moved
        loss = F.cross_entropy(net(x + delta), y, reduction="none").detach()
        best = torch.where((loss >= highest).reshape(-1, 1, 1, 1), delta, best)
        highest = torch.maximum(highest, loss)
    assert torch.allclose(found, best, rtol=0, atol=1e-6)


def test_mixup_climbs_both_labels(make_net: Any, batch: Batch) -> None:
    net, (x, y) = make_net().eval(), batch
    other = y.roll(1)
    torch.manual_seed(0)
    settings = {"mixup": True, "y_a": y, "y_b": other}
    delta = robust_overfitting.attack_pgd(net, x, y, 0.05, 0.02, 5, 1, "l_inf", lam=0.3, **settings)

    def mixed(images: Tensor, lam: float) -> Tensor:
        return (
            lam * F.cross_entropy(net(images), y) + (1 - lam) * F.cross_entropy(net(images), other)
        ).detach()

    assert mixed(x + delta, 0.3) > mixed(x, 0.3)
    torch.manual_seed(0)
    pure = robust_overfitting.attack_pgd(net, x, y, 0.05, 0.02, 5, 1, "l_inf", lam=1.0, **settings)
    torch.manual_seed(0)
    plain = robust_overfitting.attack_pgd(net, x, y, 0.05, 0.02, 5, 1, "l_inf")
    assert torch.equal(pure, plain)
    early = robust_overfitting.attack_pgd(
        net, x, y, 0.05, 0.02, 5, 1, "l_inf", early_stop=True, lam=0.3, **settings
    )
    assert early.shape == x.shape


def test_restarts_go_by_the_loss_not_by_success(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three logits a fooled sample may have the lower loss: the scripts still take the higher."""

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Delta 0.1 fools with loss log(1 + e^0.1) ~ 0.74; delta 0.2 does not, with loss log 3 ~ 1.1.
            fooled = (x.flatten(1).amax(1) < 0.65)[:, None]
            return (
                torch.where(fooled, torch.tensor([0.0, 0.1, -9.0]), torch.tensor([0.0, 0.0, 0.0]))
                + 0 * x.sum()
            )

    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    from robustfast.attacks.compat.restarts import highest_loss

    runs = iter([torch.full_like(x, 0.1), torch.full_like(x, 0.2), torch.full_like(x, 0.2).neg()])
    best = highest_loss(Fixed(), x, y, lambda: next(runs), 2)
    assert torch.equal(best, torch.full_like(x, 0.2))


def test_normalize_comes_before_the_model(make_net: Any, batch: Batch) -> None:
    net, (x, y) = make_net().eval(), batch

    def normalize(images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25

    torch.manual_seed(1)
    one = robust_overfitting.attack_pgd(net, x, y, 0.03, 0.01, 4, 1, "l_inf", normalize=normalize)
    torch.manual_seed(1)
    other = robust_overfitting.attack_pgd(
        lambda images: net(normalize(images)), x, y, 0.03, 0.01, 4, 1, "l_inf"
    )
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="norm is 'linf'"):
        robust_overfitting.attack_pgd(net, x, y, 0.03, 0.01, 4, 1, "linf")


@pytest.mark.parametrize("function", ["fast", "overfitting"])
def test_the_mode_is_kept_and_nothing_else_touched(make_net: Any, batch: Batch, function: str) -> None:
    net = make_net().train()
    net[6].eval()  # dropout: the two runs below must see the same network
    before, (x, y) = copy.deepcopy(net.state_dict()), batch

    def attack(model: nn.Module) -> Tensor:
        torch.manual_seed(0)
        if function == "overfitting":
            return robust_overfitting.attack_pgd(model, x, y, 0.03, 0.01, 3, 2, "l_inf")
        return fast_adversarial.attack_pgd(model, x, y, 0.03, 0.01, 3, 2, lower_limit=0.0, upper_limit=1.0)

    in_train = attack(net)
    assert net.training
    assert not net[6].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not torch.equal(in_train, attack(net.eval())), "batch statistics were to be used"


def plain_trades(
    model: nn.Module, x: Tensor, y: Tensor, optimizer: Any, start: Tensor, step: float, eps: float, steps: int,
    beta: float, distance: str,
) -> Tensor:  # fmt: skip
    """Zhang et al. 2019, equation 5 and algorithm 1, in the order of operations of their published loss."""
    model.eval()
    x_adv = start
    for _ in range(steps if distance in ("l_inf", "l_2") else 0):
        leaf = x_adv.detach().requires_grad_()
        divergence = F.kl_div(F.log_softmax(model(leaf), 1), F.softmax(model(x), 1), reduction="sum")
        (grad,) = torch.autograd.grad(divergence, leaf)
        if distance == "l_inf":
            x_adv = torch.maximum(torch.minimum(x_adv + step * grad.sign(), x + eps), x - eps).clamp(0, 1)
        else:
            unit = grad / grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            delta = (x_adv + 2 * eps / steps * unit).clamp(0, 1) - x
            x_adv = x + delta.renorm(p=2, dim=0, maxnorm=eps)
    model.train()
    x_adv = x_adv.detach().clamp(0, 1)
    optimizer.zero_grad()
    logits = model(x)
    natural = F.cross_entropy(logits, y)
    robust = F.kl_div(F.log_softmax(model(x_adv), 1), F.softmax(model(x), 1), reduction="sum") / len(x)
    return natural + beta * robust


@pytest.mark.parametrize("distance", ["l_inf", "l_2", "none"])
def test_trades_loss_is_the_papers(
    make_net: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch, distance: str
) -> None:
    x, y = batch
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(trades, "_noise", lambda _: noise)
    found = []
    for function in ("ours", "plain"):
        net = make_net(torch.float64).train()
        net[6].p = 0.0
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        settings = (0.01, 0.031, 5, 6.0, distance)
        if function == "ours":
            loss = trades.trades_loss(net, x.double(), y, optimizer, *settings)
        else:
            start = x.double() + 0.001 * noise
            loss = plain_trades(net, x.double(), y, optimizer, start, *settings)
        assert all(parameter.grad is None for parameter in net.parameters()), "zero_grad was to be called"
        assert net.training
        loss.backward()
        found.append((loss.detach(), [p.grad for p in net.parameters()], [b.clone() for b in net.buffers()]))
    (loss, grads, buffers), (expected, expected_grads, expected_buffers) = found
    assert loss.dim() == 0
    # torch's renorm adds 1e-7 to a norm before it divides by it.
    tolerance = 1e-6 if distance == "l_2" else 1e-10
    assert torch.allclose(loss, expected, rtol=0, atol=tolerance)
    for one, other in zip(grads + buffers, expected_grads + expected_buffers, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def test_trades_takes_half_the_attack_passes(make_net: Any, batch: Batch) -> None:
    net = make_net()
    passes = []
    net.register_forward_hook(lambda *_: passes.append(net.training))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trades.trades_loss(net, *batch, optimizer=optimizer, perturb_steps=10)
    assert passes == [False] * 11 + [True] * 3


def test_a_failing_attack_leaves_the_mode(batch: Batch) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 5)).train()
    with pytest.raises(RuntimeError):
        trades.trades_loss(net, *batch, optimizer=torch.optim.SGD(net.parameters(), lr=0.1))
    assert net.training
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"expected pixels in \[0, 1\]"):
        trades.trades_loss(wide, batch[0] * 2, batch[1], optimizer)


def test_training_scripts_learn(make_net: Any, batch: Batch) -> None:
    """As the repositories' training loops go: only the import differs."""
    trades_loss, attack_pgd = trades.trades_loss, robust_overfitting.attack_pgd
    model, (data, target) = make_net(), batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = trades_loss(
            model=model, x_natural=data, y=target, optimizer=optimizer, step_size=0.007, epsilon=0.031,
            perturb_steps=2, beta=1.0,
        )  # fmt: skip
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    model.train()
    delta = attack_pgd(model, data, target, 8 / 255, 2 / 255, 3, 1, "l_inf", early_stop=False)
    loss = nn.CrossEntropyLoss()(model(torch.clamp(data + delta[: data.size(0)], min=0, max=1)), target)
    loss.backward()
    assert loss.isfinite()
