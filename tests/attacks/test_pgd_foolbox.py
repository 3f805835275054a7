"""Foolbox's PGD with its relative steps and its way back into the l1 ball, and CD-VAE's step length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import ATTACKS, PGD, PGDC, PGDFoolbox

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")


@pytest.mark.parametrize("steps", [1, 3, None])
@pytest.mark.parametrize(
    ("attack", "norm", "eps"), [("LinfPGD", "linf", 8 / 255), ("L2PGD", "l2", 0.5), ("L1PGD", "l1", 8.0)]
)
def test_defaults_are_foolboxs(
    net: nn.Module, batch: Batch, foolbox: Any, attack: str, norm: str, eps: float, steps: int | None
) -> None:
    x, y = batch
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    more = {} if steps is None else {"steps": steps}
    theirs = getattr(foolbox.attacks, attack)(random_start=False, **more).run(model, x, y, epsilon=eps)
    ours = PGDFoolbox(net, eps, norm, random_start=False, **more)(x, y)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    if norm == "l1" and steps is None:
        assert (ours - x).abs().flatten(1).sum(1).max() > 0.9 * eps, "the way back must have been needed"


def test_a_step_is_a_fraction_of_the_radius_in_force(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    attack = PGDFoolbox(net, 0.3, steps=1, random_start=False)
    assert ((attack(x, y) - x).abs().max() - 0.01).abs() < 1e-6
    assert ((attack(x, y, eps=0.15) - x).abs().max() - 0.005).abs() < 1e-6


def test_the_step_of_cd_vae_shrinks_with_the_number_of_steps(net: nn.Module, batch: Batch) -> None:
    ours = PGDC(net, 0.1, steps=16, seed=2)(*batch)
    assert torch.equal(ours, PGD(net, 0.1, 0.1 * 16**-0.5, 16, seed=2)(*batch))


def test_presets_of_pgd_differ_as_they_say(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    pgd = ATTACKS["pgd"](net, eps=0.2)
    assert torch.equal(pgd(x, y), PGD(net, 0.2, 0.05)(x, y))
    yopo = ATTACKS["pgd-y"](net, eps=0.5, norm="l2")
    assert torch.equal(yopo(x, y), PGD(net, 0.5, 0.125, norm="l2", step="sign", random_start="pixel")(x, y))
