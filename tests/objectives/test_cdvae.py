"""CD-VAE: its loss by hand, what each term moves, whole steps against a plain writing, and what a step costs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pass_counter import PassCounter, convolutions
from torch import Tensor, nn

from robustfast.attacks import AttackConfig
from robustfast.attacks.draws import normal
from robustfast.data import Batch
from robustfast.data.mixup import beta, mixup
from robustfast.errors import UserError
from robustfast.models import ClassDisentangled
from robustfast.models.class_disentangled import Split
from robustfast.objectives import CDVAE
from robustfast.seeds import derive
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS

CPU = torch.device("cpu")
SEED = 3


def cdvae(readings: str = "n", dtype: torch.dtype = torch.float32, **fields: Any) -> CDVAE:
    """A fresh one, always the same, in train mode."""
    torch.manual_seed(1)
    model = ClassDisentangled(
        "digits_cnn", num_classes=10, in_channels=1, autoencoder="digits_vae", readings=readings
    )
    return CDVAE(model.to(dtype), CDVAE.Config(**fields), AttackConfig(), seed=SEED)


def images(count: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return Batch(x.to(dtype), torch.randint(10, (count,), generator=generator), torch.arange(count) + 5)


def moved_by(objective: CDVAE, batch: Batch) -> set[str]:
    """Children of the model of whose parameters the engine gets a gradient other than zero."""
    (phase,) = objective.phases(*batch[:3])
    phase.loss.backward(inputs=objective.parameters()["model"])
    return {
        name
        for name, part in objective.model.named_children()
        if any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
    }


# --- the loss -----------------------------------------------------------------------------------------


class Toy(ClassDisentangled):
    """Splits and classifies as it is told."""

    def __init__(self, g: Tensor, regulariser: Tensor) -> None:
        nn.Module.__init__(self)
        self.readings = "n"
        self.g, self.told = g, regulariser

    def split(self, x: Tensor, **_: Any) -> Split:
        return Split(x, self.g, x - self.g, self.g, self.told)

    def classifier(self, part: str) -> Any:
        assert part == "r"
        return lambda r: r.flatten(1)


def test_the_loss_of_toy_tensors_is_what_a_hand_computes() -> None:
    x = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 1.0]]]])
    g = torch.tensor([[[[0.0, 0.0]]], [[[0.5, 0.0]]]])
    # Squared errors 1, 0, 0, 1 of four pixels; R is (1, 0) of class 0 and (0, 1) of class 1; codes of 3 and 5.
    error, ce, regulariser = 0.5, math.log(1 + math.exp(-1)), 4.0
    toy = Toy(g, torch.tensor([3.0, 5.0]))
    config = CDVAE.Config(gamma=2.0, beta=0.25, reconstruction=3.0, curriculum=False, mixup=False)
    objective = CDVAE(toy, config, AttackConfig(), seed=0)
    (phase,) = objective.phases(x, torch.tensor([0, 1]), torch.arange(2))
    expected = {"reconstruction": error, "ce": ce, "regulariser": regulariser}
    assert {name: value.item() for name, value in phase.terms.items()} == pytest.approx(expected)
    assert phase.loss.item() == pytest.approx(3 * error + 2 * ce + 0.25 * regulariser)


def test_a_mixed_loss_is_the_mixture_of_both_labels_on_the_mixed_image() -> None:
    x, y, index = torch.rand(4, 1, 1, 3), torch.tensor([0, 1, 2, 2]), torch.arange(4)
    toy = Toy(torch.zeros(4, 1, 1, 3), torch.zeros(4))
    objective = CDVAE(toy, CDVAE.Config(gamma=1.0, curriculum=False), AttackConfig(), seed=0)
    objective.begin(2, 0.25)
    (phase,) = objective.phases(x, y, index)
    mixed = mixup(x, seed=derive(0, "mixup", 2, "0.25"), index=index)
    weight, logs = mixed.weight.item(), F.log_softmax(mixed.x.flatten(1), 1)
    by_hand = [-weight * logs[i, y[i]] - (1 - weight) * logs[i, y[int(mixed.partner[i])]] for i in range(4)]
    assert 0.01 < weight < 0.99
    assert not torch.equal(mixed.x, x)
    assert phase.terms["ce"].item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)
    # G(x) is 0: the error is the mixed image's mean square.
    assert phase.terms["reconstruction"].item() == pytest.approx(mixed.x.square().mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("progress", "weight"),
    [(0.0, 10.0), (0.33, 10.0), (1 / 3, 5.0), (0.66, 5.0), (2 / 3, 1.0), (0.99, 1.0), (1.0, 1.0)],
)
def test_the_weight_of_the_reconstruction_falls_by_thirds(progress: float, weight: float) -> None:
    objective = cdvae(gamma=0.0, beta=0.0, reconstruction=2.0)
    objective.begin(0, progress)
    (phase,) = objective.phases(*images()[:3])
    assert phase.loss.item() == pytest.approx(2 * weight * phase.terms["reconstruction"].item())
    objective.config = replace(objective.config, curriculum=False)
    (phase,) = objective.phases(*images()[:3])
    assert phase.loss.item() == pytest.approx(2 * phase.terms["reconstruction"].item())


def test_every_batch_is_mixed_by_a_weight_of_its_own_that_its_parts_share() -> None:
    def weight(epoch: int, progress: float) -> float:
        objective = cdvae()
        objective.begin(epoch, progress)
        return beta(2.0, 2.0, seed=objective.now()["mixture"]).item()

    moments = [(epoch, (epoch + step / 4) / 2) for epoch in range(2) for step in range(4)]
    weights = [weight(*moment) for moment in moments]
    assert len(set(weights)) == len(weights)
    assert weights == [weight(*moment) for moment in moments]


def test_the_code_is_drawn_by_seed_epoch_and_sample_alone() -> None:
    x, y, index = images()[:3]
    objective = cdvae(mixup=False)
    objective.model.eval()  # so that no sample sees another one through a batch norm
    seen: list[Tensor] = []
    split = objective.model.split
    objective.model.split = lambda *args, **keywords: seen.append(split(*args, **keywords)) or seen[-1]

    def drawn(epoch: int, some: Any) -> Tensor:
        objective.begin(epoch, epoch / 4)
        list(objective.phases(x[some], y[some], index[some]))
        return seen[-1].g

    whole = drawn(1, slice(None))
    assert torch.allclose(whole[2:5], drawn(1, slice(2, 5)), atol=1e-6)
    assert not torch.allclose(whole, drawn(2, slice(None)), atol=1e-3)
    assert not torch.allclose(whole, split(x).g, atol=1e-3)


# --- routing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "moved"),
    [
        ({"gamma": 1.0}, {"generator", "classifier_r"}),
        ({"reconstruction": 1.0}, {"generator"}),
        ({"beta": 1.0}, {"generator"}),
    ],
    ids=["ce", "reconstruction", "regulariser"],
)
def test_each_term_moves_what_it_depends_on(weights: dict[str, float], moved: set[str]) -> None:
    off = {"gamma": 0.0, "beta": 0.0, "reconstruction": 0.0}
    assert moved_by(cdvae("rn", **off | weights), images()) == moved


def test_the_divergence_moves_the_encoder_alone_and_the_cross_entropy_the_decoder_too() -> None:
    for fields, moves in (({"gamma": 0.0, "beta": 1.0}, False), ({"gamma": 1.0, "beta": 0.0}, True)):
        objective = cdvae(reconstruction=0.0, **fields)
        moved_by(objective, images())
        gradients = [p.grad for p in objective.model.generator.decoder.parameters()]
        assert any(bool(g.any()) for g in gradients if g is not None) == moves


def test_the_cross_entropy_reaches_g_through_its_negative() -> None:
    x, y, index = images(dtype=torch.float64)[:3]
    objective = cdvae(dtype=torch.float64, gamma=1.0, beta=0.0, reconstruction=0.0, mixup=False)
    split = objective.model.split
    seen: list[Split] = []

    def spy(*args: Any, **keywords: Any) -> Split:
        found = split(*args, **keywords)
        g = found.g.detach().requires_grad_()
        seen.append(found._replace(g=g, r=found.x - g))
        return seen[-1]

    objective.model.split = spy
    (phase,) = objective.phases(x, y, index)
    (to_g,) = torch.autograd.grad(phase.loss, seen[0].g)
    r = seen[0].r.detach().requires_grad_()
    (to_r,) = torch.autograd.grad(F.cross_entropy(objective.model.classifier("r")(r), y), r)
    assert to_r.abs().max() > 1e-4
    assert torch.allclose(to_g, -to_r, rtol=1e-10, atol=1e-14)


# --- whole steps --------------------------------------------------------------------------------------


def plain_step(model: ClassDisentangled, batch: Batch, epoch: int, progress: float, lr: float) -> None:
    """One batch by hand: equations 1 to 3 as the code weighs them, and the first step of SGD. (That of AdamW has the
    sign of each gradient, also where it is 0 but for rounding, as in front of batch norms.)"""
    x, y, index = batch[:3]
    mixed = mixup(x, seed=derive(SEED, "mixup", epoch, str(progress)), index=index)
    weight = mixed.weight.item()
    pixels = (mixed.x - model.normalisation.mean) / model.normalisation.std
    vae = model.generator
    mean, log_variance = vae.posterior(pixels)
    noise = normal(index, mean.shape[1:], seed=derive(SEED, "posterior", epoch), dtype=x.dtype)
    g = vae.decode(mean + (log_variance / 2).exp() * noise)
    logs = F.log_softmax(model.classifier_r(pixels - g), 1)
    rows = torch.arange(len(y))
    ce = -(weight * logs[rows, y] + (1 - weight) * logs[rows, y[mixed.partner]]).mean()
    kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2 / len(y) / vae.latent
    loss = 5 * ((g - pixels) ** 2).mean() + 0.7 * ce + 0.2 * kl
    leaves = [p for part in (vae, model.classifier_r) for p in part.parameters()]
    for p, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        p.data -= lr * (gradient + 5e-4 * p.data)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_step_is_that_of_a_plain_writing(dtype: torch.dtype, close: float) -> None:
    objective, batch = cdvae(dtype=dtype, gamma=0.7), images(dtype=dtype)
    by_hand, start = copy.deepcopy(objective.model), copy.deepcopy(objective.model)
    config = replace(PRESETS["digits-cdvae"], optimizer="sgd", weight_decay=5e-4)
    objective.begin(4, 0.5)
    Engine(objective, config, CPU).step(batch, lr=0.05)
    plain_step(by_hand, batch, 4, 0.5, 0.05)
    moved = 0.0
    for (name, mine), theirs, old in zip(
        objective.model.named_parameters(), by_hand.parameters(), start.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=close, atol=close), name
        moved = max(moved, float((mine - old).detach().abs().max()))
    for (name, mine), theirs in zip(objective.model.named_buffers(), by_hand.buffers(), strict=True):
        assert torch.allclose(mine.to(dtype), theirs.to(dtype), rtol=close, atol=close), name
    assert moved > 1e-2


def test_the_classifier_of_another_part_stays_as_it_is() -> None:
    objective = cdvae("rn")
    before = {name: value.clone() for name, value in objective.model.classifier_g.state_dict().items()}
    Engine(objective, PRESETS["digits-cdvae"], CPU).step(images(), lr=1e-3)
    assert all(torch.equal(before[k], v) for k, v in objective.model.classifier_g.state_dict().items())


def test_bf16_trains_with_finite_losses_near_those_of_fp32() -> None:
    losses = {}
    for name in ("fp32", "bf16"):
        objective = cdvae()
        engine = Engine(objective, replace(PRESETS["digits-cdvae"], precision=name), CPU)
        assert (engine.precision.dtype is None) == (name == "fp32")
        losses[name] = engine.step(images(), lr=1e-3)
        assert all(bool(torch.isfinite(p).all()) for p in objective.model.parameters())
    assert all(value.dtype == torch.float32 for value in losses["bf16"].values())
    for name, value in losses["fp32"].items():
        assert losses["bf16"][name].item() == pytest.approx(value.item(), rel=0.05), name


# --- passes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["digits_cnn", "wide_resnet10_1"])
def test_a_step_costs_one_pass_of_each_network(backbone: str) -> None:
    torch.manual_seed(1)
    model = ClassDisentangled(
        backbone, num_classes=10, in_channels=1, autoencoder="digits_vae", readings="rn"
    )
    objective = CDVAE(model, CDVAE.Config(), AttackConfig(), seed=0)
    with PassCounter() as count:
        (phase,) = objective.phases(*images()[:3])
        phase.loss.backward(inputs=objective.parameters()["model"])
    generator = sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.generator.modules())
    n = convolutions(model.classifier_r) + generator
    assert count.forward == count.weight_gradients == n
    # All but the images need a gradient: G(x) does in R(x).
    assert count.input_gradients == n - 1
    assert CDVAE.passes(objective.config, objective.strength) == 3


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gamma", "beta", "reconstruction"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--objective.{name} is {value}, expected a finite number from 0"):
        CDVAE.Config(**{name: value})


def test_a_network_without_the_way_is_refused_with_the_names_of_those_that_have_it() -> None:
    model = ClassDisentangled(
        "digits_cnn", num_classes=10, in_channels=1, autoencoder="digits_vae", readings="r"
    )
    with pytest.raises(
        UserError,
        match=r"trains ways n of a ClassDisentangled, got a ClassDisentangled of ways r: .*digits_vae_n.*digits_vae_rn",
    ):
        CDVAE(model, CDVAE.Config(), AttackConfig(), seed=0)
