"""C&W's margin under PGD: the published loops with that loss, and kappa."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks import ATTACKS, PGD, MarginPGD

Batch = tuple[Tensor, Tensor]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)


@pytest.mark.parametrize(("norm", "eps", "step_size"), [("linf", 8 / 255, 2 / 255), ("l2", 0.5, 0.1)])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("kappa", [float("inf"), 0.02])
def test_every_step_is_foolboxs_on_that_loss(
    net: nn.Module, batch: Batch, norm: str, eps: float, step_size: float, steps: int, kappa: float
) -> None:
    foolbox = pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")
    ep = pytest.importorskip("eagerpy")
    net, (x, y) = net.double().eval(), (batch[0].double(), batch[1])
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD

    class OnMargin(kind):  # type: ignore[misc, valid-type]
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            return lambda x: ep.astensor(margin(model(x).raw, labels.raw).clamp(max=kappa).sum())

    theirs = OnMargin(abs_stepsize=step_size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    expected = theirs.run(model, x, y, epsilon=eps)
    ours = MarginPGD(net, eps, norm=norm, step_size=step_size, steps=steps, kappa=kappa, random_start=False)(
        x, y
    )
    if norm == "linf":
        # A tie is an entry whose gradient is zero but for rounding: its sign is chance.
        ties = int(((ours - expected).abs() > 1e-12).sum())
        assert ties == 0, f"{ties} of {x.numel()} entries stepped the other way"
    assert torch.allclose(ours, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, x, rtol=0, atol=1e-3)


def test_it_is_pgd_with_that_loss(net: nn.Module, batch: Batch) -> None:
    settings = {"eps": 8 / 255, "steps": 5, "restarts": 2, "seed": 3}
    ours = MarginPGD(net, relative_step=0.25, **settings)(*batch)
    assert torch.equal(ours, PGD(net, loss="margin", relative_step=0.25, **settings)(*batch))
    assert torch.equal(ours, ATTACKS["cw-pgd"](net, **settings)(*batch))


@pytest.mark.parametrize("targeted", [False, True])
def test_a_sample_that_leads_by_kappa_stays(net: nn.Module, batch: Batch, targeted: bool) -> None:
    net = net.double().eval()
    x = batch[0].double()
    y = (net(x).argmax(1) + targeted) % 5

    def lead(kappa: float, steps: int) -> tuple[Tensor, Tensor]:
        attack = MarginPGD(
            net,
            8.0,
            norm="l2",
            step_size=0.1,
            steps=steps,
            kappa=kappa,
            random_start=False,
            targeted=targeted,
        )
        x_adv = attack(x, y)
        return x_adv, margin(net(x_adv), y) * (-1 if targeted else 1)

    early, reached = lead(0.01, 60)
    late, further = lead(float("inf"), 60)
    there = reached > 0.01
    assert there.any()
    # One step takes the lead a little past kappa, and no more follow.
    assert torch.equal(lead(0.01, 90)[0][there], early[there])
    assert (reached < 0.1).all()
    assert (further[there] > reached[there]).all()
    assert not torch.equal(late, early)


def test_labels_are_held_to_those_of_a_named_loss(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    for kappa in (1.0, float("inf")):
        with pytest.raises(ValueError, match="labels from"):
            MarginPGD(net, kappa=kappa)(x, y + 5)
        with pytest.raises(TypeError, match="int64"):
            MarginPGD(net, kappa=kappa)(x, y.double())


@pytest.mark.parametrize(
    ("settings", "names"), [({"kappa": -1}, "kappa"), ({"loss": "ce"}, "loss"), ({"norm": "l1"}, "norm")]
)
def test_settings_out_of_range_are_named(net: nn.Module, settings: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        MarginPGD(net, **settings)
