"""BIM and MIM beside torchattacks, step by step, and the zero gradient that breaks the peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import BIM, MIM

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def torchattacks() -> Any:
    return pytest.importorskip("torchattacks", reason="needs: pip install --no-deps torchattacks")


@pytest.fixture
def double(make_net: Callable[..., nn.Module], batch: Batch) -> tuple[nn.Module, Tensor, Tensor]:
    return make_net(torch.float64), batch[0].double(), batch[1]


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.4])
def test_mim_is_torchattacks_step_by_step(
    double: tuple[nn.Module, Tensor, Tensor], torchattacks: Any, steps: int, targeted: bool, decay: float
) -> None:
    net, x, y = double
    theirs = torchattacks.MIFGSM(net, eps=8 / 255, alpha=2 / 255, steps=steps, decay=decay)
    if targeted:
        theirs.set_mode_targeted_by_label(quiet=True)
    ours = MIM(net, 8 / 255, 2 / 255, steps, decay=decay, targeted=targeted)(x, y)
    assert torch.equal(ours, theirs(x, y))


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_bim_is_torchattacks_step_by_step(
    double: tuple[nn.Module, Tensor, Tensor], torchattacks: Any, steps: int
) -> None:
    net, x, y = double
    theirs = torchattacks.BIM(net, eps=8 / 255, alpha=2 / 255, steps=steps)(x, y)
    ours = BIM(net, 8 / 255, 2 / 255, steps)(x, y)
    # They clip to x - eps and x + eps, which rounds otherwise than the difference.
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-15)


class DeadUntil(nn.Module):
    """A model whose gradient is zero for the samples in `dead` in its first call, nan for those in `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        factor = torch.ones(len(x), 1)
        if self.calls == 1:
            factor[0], factor[1] = 0, torch.nan
        return (x.flatten(1) * factor) @ self.weight


def test_a_gradient_that_is_zero_or_nan_adds_nothing_and_the_step_goes_on() -> None:
    x = torch.full((3, 12), 0.5)
    y = torch.tensor([0, 1, 2])
    attack = MIM(DeadUntil(), 0.3, 0.1, 3)
    found = attack(x, y)
    whole = MIM(nn.Sequential(nn.Flatten(), _same(DeadUntil().weight)), 0.3, 0.1, 3)(x, y)
    assert torch.equal(found[2], whole[2])
    # Two of three steps are left to those who lost the first.
    assert ((found[:2] - x[:2]).abs() - 0.2).abs().max() < 1e-6
    assert attack.report.zero_gradient == 1
    assert attack.report.nonfinite_gradient == 1


def _same(weight: Tensor) -> nn.Module:
    layer = nn.Linear(12, 3, bias=False)
    layer.weight.data = weight.detach().t().clone()
    return layer


def test_momentum_starts_anew_with_each_restart_and_call(net: nn.Module, batch: Batch) -> None:
    attack = MIM(net, 0.1, 0.02, 5, random_start=True, restarts=2, seed=1)
    assert torch.equal(attack(*batch), attack(*batch))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_momentum_is_bim(net: nn.Module, batch: Batch, norm: str) -> None:
    eps = {"linf": 0.05, "l2": 0.5, "l1": 3.0}[norm]
    ours = MIM(net, eps, eps / 4, 5, norm=norm, decay=0.0)(*batch)
    expected = BIM(net, eps, eps / 4, 5, norm=norm)(*batch)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_wrong_decay_is_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="decay is -1, expected a factor >= 0"):
        MIM(net, decay=-1)
