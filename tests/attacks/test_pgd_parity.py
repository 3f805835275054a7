"""The same trajectory as published implementations, wherever the definitions are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import PGD

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")


# torchattacks climbs the mean of the loss over the batch, PGD its sum. Eight images: the factor is exact.


@pytest.mark.parametrize("targeted", [False, True])
def test_linf_is_bit_equal_to_torchattacks(
    net: nn.Module, batch: Batch, torchattacks: Any, targeted: bool
) -> None:
    theirs = torchattacks.PGD(net, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    ours = PGD(net, eps=8 / 255, step_size=2 / 255, steps=10, random_start=False, targeted=targeted)
    assert torch.equal(ours(*batch), theirs(*batch))


def test_linf_from_the_same_random_start(
    net: nn.Module, batch: Batch, torchattacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = batch
    noise = torch.empty_like(x).uniform_(-8 / 255, 8 / 255)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, *_: self.copy_(noise))
    theirs = torchattacks.PGD(net, steps=5, random_start=True)(x, y)
    ours = PGD(net, steps=5)(x, y, start=(x + noise).clamp(0, 1))
    assert torch.equal(ours, theirs)


def test_l2_equals_torchattacks(net: nn.Module, batch: Batch, torchattacks: Any) -> None:
    theirs = torchattacks.PGDL2(net, eps=0.5, alpha=0.1, steps=10, random_start=False)(*batch)
    ours = PGD(net, eps=0.5, step_size=0.1, steps=10, norm="l2", random_start=False)(*batch)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert (ours - batch[0]).flatten(1).norm(dim=1).max() > 0.49, "the projection must have been at work"


@pytest.mark.parametrize(
    ("attack", "norm", "eps", "step_size"),
    [
        ("LinfPGD", "linf", 8 / 255, 2 / 255),
        ("L2PGD", "l2", 0.5, 0.1),
        # Foolbox scales back into the l1 ball, PGD projects: the same only while the steps stay inside, 10 of 0.3 here.
        ("L1PGD", "l1", 3.0, 0.3),
    ],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_foolbox(
    net: nn.Module,
    batch: Batch,
    foolbox: Any,
    attack: str,
    norm: str,
    eps: float,
    step_size: float,
    targeted: bool,
) -> None:
    x, y = batch
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    theirs = getattr(foolbox.attacks, attack)(abs_stepsize=step_size, steps=10, random_start=False)
    goal = (
        foolbox.criteria.TargetedMisclassification(y) if targeted else foolbox.criteria.Misclassification(y)
    )
    expected = theirs.run(model, x, goal, epsilon=eps)
    step = "sign" if norm == "linf" else "grad"
    ours = PGD(net, eps, step_size, 10, norm, step, random_start=False, targeted=targeted)(x, y)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(ours, x, rtol=0, atol=1e-3)


def test_the_aat_papers_l2_is_yopos_loop(net: nn.Module, batch: Batch) -> None:
    # YOPO's PGD, written out: a sign step under the l2 ball too. It clips before it projects, PGD after: the same for
    # images that no step takes to a wall of the box.
    x, y = 0.35 + 0.3 * batch[0], batch[1]
    net.eval()
    delta = torch.zeros_like(x)
    for _ in range(5):
        leaf = (x + delta).requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(leaf), y), leaf)
        moved = (leaf.detach() + 0.1 * grad.sign()).clamp(0, 1) - x
        delta = moved * (0.3 / moved.flatten(1).norm(dim=1)).clamp(max=1).reshape(-1, 1, 1, 1)
    ours = PGD(net, 0.3, 0.1, 5, "l2", "sign", random_start=False)(x, y)
    assert torch.allclose(ours, x + delta, rtol=0, atol=1e-6)
    assert not torch.allclose(ours, x, rtol=0, atol=1e-2)
