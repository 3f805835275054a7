"""The classes of advertorch, against plain loops written from its documentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks.compat import advertorch

Batch = tuple[Tensor, Tensor]
ROWS = (-1, 1, 1, 1)


def norm_of(x: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), p, dim=1)


def plain(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    length: Tensor,
    steps: int,
    ord: float,
    targeted: bool,
) -> Tensor:
    """The documented loop: project then clip under linf, clip then project under l2."""
    delta = torch.zeros_like(x)
    for _ in range(steps):
        leaf = (x + delta).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        grad = -grad if targeted else grad
        if ord == np.inf:
            delta = delta + length.reshape(ROWS) * grad.sign()
            delta = torch.maximum(torch.minimum(delta, eps.reshape(ROWS)), -eps.reshape(ROWS))
            delta = (x + delta).clamp(0, 1) - x
        else:
            delta = delta + length.reshape(ROWS) * grad / norm_of(grad, 2).reshape(ROWS)
            delta = (x + delta).clamp(0, 1) - x
            delta = delta * (eps / norm_of(delta, 2)).clamp(max=1).reshape(ROWS)
    return x + delta


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize(("name", "ord", "scale"), [("LinfPGDAttack", np.inf, 0.06), ("L2PGDAttack", 2, 0.8)])
def test_pgd_is_the_documented_loop(
    net: nn.Module, batch: Batch, name: str, ord: float, scale: float, per_sample: bool, targeted: bool
) -> None:
    net.eval()
    x, y = batch
    eps = torch.linspace(0.2, 1, 8) * scale if per_sample else torch.full((8,), scale)
    length = eps / 4
    expected = plain(net, x, y, eps, length, 6, ord, targeted)
    sizes = (eps, length) if per_sample else (scale, scale / 4)
    attack = getattr(advertorch, name)(
        net, eps=sizes[0], eps_iter=sizes[1], nb_iter=6, rand_init=False, targeted=targeted
    )
    assert torch.allclose(attack.perturb(x, y), expected, rtol=0, atol=1e-6)
    assert torch.equal(attack(x, y), attack.perturb(x, y))


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("GradientSignAttack", (None, 0.3, 0.0, 1.0, False)),
        ("LinfPGDAttack", (None, 0.3, 40, 0.01, True, 0.0, 1.0, False)),
        ("L2PGDAttack", (None, 0.3, 40, 0.01, True, 0.0, 1.0, False)),
        ("L1PGDAttack", (None, 10.0, 40, 0.01, True, 0.0, 1.0, False)),
        ("SparseL1DescentAttack", (None, 0.3, 40, 0.01, False, 0.0, 1.0, 0.95, False)),
        ("LinfBasicIterativeAttack", (None, 0.1, 10, 0.05, 0.0, 1.0, False)),
        ("L2BasicIterativeAttack", (None, 0.1, 10, 0.05, 0.0, 1.0, False)),
        ("MomentumIterativeAttack", (None, 0.3, 40, 1.0, 0.01, 0.0, 1.0, False, np.inf)),
        ("CarliniWagnerL2Attack", (0, False, 0.01, 9, 10000, True, 1e-3, 0.0, 1.0, None)),
        ("DDNL2Attack", (100, 0.05, 1.0, True, 256, 0.0, 1.0, False, None)),
        ("DeepfoolLinfAttack", (None, 50, 0.1, 0.02, 0.0, 1.0, None, False)),
        ("LinfSPSAAttack", (0.01, 0.01, 1, 128, 64, False, None, 0.0, 1.0)),
    ],
)
def test_defaults_are_the_libraries(name: str, defaults: tuple[Any, ...]) -> None:
    assert getattr(advertorch, name).__init__.__defaults__ == defaults


def test_l1_steps_move_what_they_say(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x, y = 0.3 + 0.4 * batch[0], batch[1]
    one = advertorch.L1PGDAttack(net, eps=2.0, eps_iter=0.1, nb_iter=1, rand_init=False).perturb(x, y)
    assert ((one != x).flatten(1).sum(1) == 1).all()
    assert torch.allclose(norm_of(one - x, 1), torch.tensor(0.1), atol=1e-5)
    tenth = advertorch.SparseL1DescentAttack(net, eps=2.0, eps_iter=0.4, nb_iter=1, l1_sparsity=0.9).perturb(
        x, y
    )
    assert ((tenth != x).flatten(1).sum(1) == round(0.1 * 192)).all()
    far = advertorch.L1PGDAttack(net, eps=2.0, eps_iter=1.0, nb_iter=9).perturb(x, y)
    assert (norm_of(far - x, 1) <= 2 + 1e-5).all()


def test_starts_are_the_libraries(net: nn.Module, batch: Batch) -> None:
    net.eval()
    torch.manual_seed(0)  # a mean of 320 radii is three of its deviations off one time in four hundred
    x, y = (0.4 + 0.2 * batch[0]).repeat(40, 1, 1, 1), batch[1].repeat(40)
    still = {"nb_iter": 1, "eps_iter": 0.0}
    linf = advertorch.LinfPGDAttack(net, eps=0.1, **still).perturb(x, y) - x
    assert linf.std() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    l2 = advertorch.L2PGDAttack(net, eps=0.5, **still).perturb(x, y) - x
    assert torch.allclose(norm_of(l2, 2), torch.tensor(0.5), atol=1e-5), "on the edge"
    l1 = norm_of(advertorch.L1PGDAttack(net, eps=2.0, **still).perturb(x, y) - x, 1)
    assert l1.mean() == pytest.approx(1.0, abs=0.1)
    assert l1.max() <= 2 + 1e-4
    assert l1.std() == pytest.approx(2 / 12**0.5, rel=0.1), "a length for each sample"


def test_one_step_and_momentum(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x, y = batch
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    found = advertorch.GradientSignAttack(net, eps=0.1).perturb(x, y)
    assert torch.allclose(found, (x + 0.1 * grad.sign()).clamp(0, 1), rtol=0, atol=1e-7)
    found = advertorch.GradientAttack(net, eps=0.5).perturb(x, y)
    expected = (x + 0.5 * grad / norm_of(grad, 2).reshape(ROWS)).clamp(0, 1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    assert advertorch.FGSM is advertorch.GradientSignAttack
    assert advertorch.FGM is advertorch.GradientAttack

    delta, velocity = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(5):
        leaf = (x + delta).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
        velocity = 0.5 * velocity + grad / norm_of(grad, 1).reshape(ROWS)
        delta = (x + (delta + 0.02 * velocity.sign()).clamp(-0.06, 0.06)).clamp(0, 1) - x
    attack = advertorch.MomentumIterativeAttack(net, eps=0.06, nb_iter=5, decay_factor=0.5, eps_iter=0.02)
    assert torch.allclose(attack.perturb(x, y), x + delta, rtol=0, atol=1e-6)
    l2 = advertorch.L2MomentumIterativeAttack(net, eps=0.5, eps_iter=0.2, nb_iter=4).perturb(x, y)
    assert l2.isfinite().all()
    assert (norm_of(l2 - x, 2) <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_a_loss_of_ones_own_is_climbed(net: nn.Module, batch: Batch, reduction: str) -> None:
    net.eval()
    attack = advertorch.LinfBasicIterativeAttack(net, loss_fn=nn.CrossEntropyLoss(reduction=reduction))
    assert torch.equal(attack.perturb(*batch), advertorch.LinfBasicIterativeAttack(net).perturb(*batch))
    first = advertorch.LinfBasicIterativeAttack(net, loss_fn=lambda outputs, y: outputs[:, 0].sum())
    assert net(first.perturb(*batch))[:, 0].sum() > net(batch[0])[:, 0].sum()


def test_a_loss_keeps_its_attack(net: nn.Module, batch: Batch) -> None:
    net.eval()
    attack = advertorch.LinfBasicIterativeAttack(net, loss_fn=nn.CrossEntropyLoss(reduction="sum"))
    attack.perturb(*batch)
    first = attack._built.last
    attack.perturb(*batch)
    assert attack._built.last is first, "built anew, a CUDA graph would be captured in each call"
    attack.loss_fn = nn.CrossEntropyLoss()
    attack.perturb(*batch)
    assert attack._built.last is not first


def test_labels_may_be_left_out_unless_they_are_wanted(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x, predicted = batch[0], net(batch[0]).argmax(1)
    attack = advertorch.LinfBasicIterativeAttack(net)
    assert torch.equal(attack.perturb(x), attack.perturb(x, predicted))
    with pytest.raises(AssertionError):
        advertorch.LinfBasicIterativeAttack(net, targeted=True).perturb(x)
    with pytest.raises(NotImplementedError):
        advertorch.PGDAttack(net, ord=3)
    with pytest.raises(NotImplementedError):
        advertorch.MomentumIterativeAttack(net, ord=1)
    with pytest.raises(AssertionError):
        advertorch.PGDAttack(net, eps=1)
    with pytest.raises(NotImplementedError):
        advertorch.Attack(net, None, 0, 1).perturb(x)
    with pytest.raises(AttributeError, match="no counterpart"):
        _ = advertorch.JacobianSaliencyMapAttack


def test_other_pixel_ranges(make_net: Any, batch: Batch) -> None:
    net, (x, y) = make_net().eval(), batch
    one = advertorch.LinfPGDAttack(
        lambda z: net(z / 2 + 0.5), eps=0.1, eps_iter=0.02, rand_init=False, clip_min=-1.0
    )
    found = one.perturb(x * 2 - 1, y)
    other = advertorch.LinfPGDAttack(net, eps=0.05, eps_iter=0.01, rand_init=False).perturb(x, y)
    assert torch.allclose(found / 2 + 0.5, other, atol=1e-5)


def test_nearest_images(net: nn.Module, batch: Batch) -> None:
    net.eval()
    x = batch[0]
    y = net(x).argmax(1)
    cw = advertorch.CarliniWagnerL2Attack(
        net, 5, max_iterations=40, binary_search_steps=2, initial_const=100.0, learning_rate=0.02
    )
    ddn = advertorch.DDNL2Attack(net, nb_iter=40)
    deepfool = advertorch.DeepfoolLinfAttack(net, nb_iter=20, eps=0.2)
    for attack in (cw, ddn, deepfool):
        assert (net(attack.perturb(x, y)).argmax(1) != y).sum() >= 6
    levels = ddn.perturb(x, y) * 255
    moved = ddn.perturb(x, y) != x
    assert (levels - levels.round()).abs()[moved].max() < 1e-3
    assert not torch.equal(
        advertorch.DDNL2Attack(net, nb_iter=40, quantize=False).perturb(x, y) * 255, levels
    )
    assert (deepfool.perturb(x, y) - x).abs().max() <= 0.2 * 1.02 + 1e-6
    near = advertorch.DeepfoolLinfAttack(net, num_classes=3, eps=0.001).perturb(x, y)
    assert (near - x).abs().max() <= 0.001 * 1.02 + 1e-6


def test_an_unmodified_script_runs(make_net: Any, batch: Batch) -> None:
    """As the attack tutorial goes, in other words: only the import differs."""
    model, (cln_data, true_label) = make_net().eval(), batch
    adversary = advertorch.LinfPGDAttack(
        model, loss_fn=nn.CrossEntropyLoss(reduction="sum"), eps=0.15, nb_iter=10, eps_iter=0.01, rand_init=True,
        clip_min=0.0, clip_max=1.0, targeted=False,
    )  # fmt: skip
    adv_untargeted = adversary.perturb(cln_data, true_label)
    target = torch.ones_like(true_label) * 3
    adversary.targeted = True
    adv_targeted = adversary.perturb(cln_data, target)
    for adv in (adv_untargeted, adv_targeted):
        assert adv.shape == cln_data.shape
        assert adv.dtype == cln_data.dtype
        assert not adv.requires_grad
        assert (adv - cln_data).abs().max() <= 0.15 + 1e-6
    assert F.cross_entropy(model(adv_targeted), target) < F.cross_entropy(model(cln_data), target)
