"""FGSM and FGSM-RS beside the published implementations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import FGSM, FGSMRS, PGD

Batch = tuple[Tensor, Tensor]


def test_fgsm_is_bit_equal_to_torchattacks(net: nn.Module, batch: Batch) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    theirs = torchattacks.FGSM(net, eps=8 / 255)(*batch)
    assert torch.equal(FGSM(net, 8 / 255)(*batch), theirs)


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [("LinfFastGradientAttack", "linf", 8 / 255), ("L2FastGradientAttack", "l2", 0.5)],
)
def test_fgsm_is_foolboxs(net: nn.Module, batch: Batch, name: str, norm: str, eps: float) -> None:
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    theirs = getattr(foolbox.attacks, name)().run(model, *batch, epsilon=eps)
    assert torch.allclose(FGSM(net, eps, norm=norm)(*batch), theirs, rtol=0, atol=1e-6)


def test_a_call_with_another_eps_steps_as_far(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    assert torch.equal(FGSM(net, 0.01)(x, y, eps=0.05), FGSM(net, 0.05)(x, y))
    eps = torch.linspace(0, 0.1, len(x))
    each = [FGSM(net, float(e))(x, y)[i] for i, e in enumerate(eps)]
    assert torch.equal(FGSM(net, eps)(x, y), torch.stack(each))


def test_fgsm_rs_is_bit_equal_to_torchattacks_from_the_same_start(
    net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    x, y = batch
    noise = torch.empty_like(x).uniform_(-8 / 255, 8 / 255)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, *_: self.copy_(noise))
    theirs = torchattacks.FFGSM(net, eps=8 / 255, alpha=10 / 255)(x, y)
    ours = FGSMRS(net, 8 / 255)(x, y, start=(x + noise).clamp(0, 1))
    assert torch.equal(ours, theirs)


def test_fgsm_rs_is_one_long_step_from_pgds_start(net: nn.Module, batch: Batch) -> None:
    one = PGD(net, 8 / 255, step_size=10 / 255, steps=1, seed=3)(*batch)
    assert torch.equal(FGSMRS(net, 8 / 255, seed=3)(*batch), one)
    assert not torch.equal(FGSMRS(net, 8 / 255, seed=4)(*batch), one)
