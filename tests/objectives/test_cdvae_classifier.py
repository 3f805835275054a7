"""Classifiers of CD-VAE's parts: what they see, what moves, that G stays as it is, whole steps, what a step costs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pass_counter import PassCounter, convolutions
from torch import nn

from robustfast.attacks import AttackConfig
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.models import ClassDisentangled
from robustfast.objectives import CDVAEClassifier
from robustfast.training.engine import Engine
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS

CPU = torch.device("cpu")
WAYS = {"x": "s", "g": "r", "r": "n"}


def network(readings: str, dtype: torch.dtype = torch.float32) -> ClassDisentangled:
    """A fresh one, always the same, whose G has seen batches."""
    torch.manual_seed(1)
    model = ClassDisentangled(
        "digits_cnn", num_classes=10, in_channels=1, autoencoder="digits_vae", readings=readings
    )
    if model.generator is not None:
        with torch.no_grad():
            model.generator(model.normalisation(images().x))
    return model.to(dtype)


def objective_of(part: str, readings: str = "rn", dtype: torch.dtype = torch.float32) -> CDVAEClassifier:
    readings = "s" if part == "x" else readings
    return CDVAEClassifier(
        network(readings, dtype), CDVAEClassifier.Config(part=part), AttackConfig(), seed=3
    )


def images(count: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(count, 1, 8, 8, generator=generator)
    return Batch(x.to(dtype), torch.randint(10, (count,), generator=generator), torch.arange(count) + 5)


@pytest.mark.parametrize("part", "xgr")
def test_the_part_says_which_way_is_trained(part: str) -> None:
    objective = objective_of(part)
    assert objective.main_ways == WAYS[part]
    own = {id(p) for p in objective.model.classifier(part).parameters()}
    assert {id(p) for p in objective.parameters()["model"]} == own


@pytest.mark.parametrize("part", "xgr")
def test_the_loss_is_the_cross_entropy_of_that_part(part: str) -> None:
    objective = objective_of(part)
    x, y, index = images()[:3]
    (phase,) = objective.phases(x, y, index)
    model = copy.deepcopy(objective.model)
    model.eval()
    with torch.no_grad():
        pixels = (x - 0.3053) / 0.3760
        seen = pixels
        if part != "x":
            vae = model.generator
            g = vae.decode(vae.posterior(pixels)[0])
            seen = g if part == "g" else pixels - g
        # In train mode, whose batch norms go by the batch.
        model.train()
        logits = model.classifier(part)(seen)
    by_hand = -F.log_softmax(logits, 1)[torch.arange(len(y)), y].mean()
    assert phase.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert phase.terms["ce"].item() == phase.loss.item()


@pytest.mark.parametrize("part", "gr")
def test_g_stays_as_it_is_bit_by_bit_with_its_statistics_and_its_mode(part: str) -> None:
    objective = objective_of(part)
    model = objective.model
    other = "r" if part == "g" else "g"
    frozen = {"generator": model.generator, f"classifier_{other}": model.classifier(other)}
    before = {name: copy.deepcopy(module.state_dict()) for name, module in frozen.items()}
    own = copy.deepcopy(model.classifier(part).state_dict())
    modes = [module.training for module in model.modules()]
    engine = Engine(objective, PRESETS["digits-cdvae-g"], CPU)
    for _ in range(2):
        engine.step(images(), lr=1e-2)
    for name, module in frozen.items():
        assert all(torch.equal(before[name][key], value) for key, value in module.state_dict().items()), name
    assert all(p.grad is None for p in model.generator.parameters())
    assert [module.training for module in model.modules()] == modes
    assert all(modes)
    moved = [not torch.equal(own[key], value) for key, value in model.classifier(part).state_dict().items()]
    assert all(moved)


@pytest.mark.parametrize("part", "xgr")
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_step_is_that_of_a_plain_writing(dtype: torch.dtype, close: float, part: str) -> None:
    objective, batch = objective_of(part, dtype=dtype), images(dtype=dtype)
    by_hand = copy.deepcopy(objective.model)
    config = replace(PRESETS["digits-cdvae-g"], optimizer="sgd", weight_decay=5e-4)
    Engine(objective, config, CPU).step(batch, lr=0.05)

    classifier = by_hand.classifier(part)
    pixels = (batch.x - by_hand.normalisation.mean) / by_hand.normalisation.std
    seen = pixels
    if part != "x":
        vae = by_hand.generator.eval()
        g = vae.decode(vae.posterior(pixels)[0]).detach()
        seen = g if part == "g" else pixels - g
    logs = F.log_softmax(classifier.classifier(classifier.encoder(seen)), 1)
    loss = -logs[torch.arange(len(batch.y)), batch.y].mean()
    leaves = list(classifier.parameters())
    start = [p.detach().clone() for p in leaves]
    for p, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        p.data -= 0.05 * (gradient + 5e-4 * p.data)

    mine = list(objective.model.classifier(part).parameters())
    for one, theirs in zip(mine, leaves, strict=True):
        assert torch.allclose(one, theirs, rtol=close, atol=close)
    assert max(float((one - old).detach().abs().max()) for one, old in zip(mine, start, strict=True)) > 1e-3


@pytest.mark.parametrize("backbone", ["digits_cnn", "wide_resnet10_1"])
@pytest.mark.parametrize("part", "xgr")
def test_a_step_costs_one_pass_of_the_classifier_and_a_forward_of_g(part: str, backbone: str) -> None:
    model = ClassDisentangled(
        backbone,
        num_classes=10,
        in_channels=1,
        autoencoder="digits_vae",
        readings="s" if part == "x" else "rn",
    )
    objective = CDVAEClassifier(model, CDVAEClassifier.Config(part=part), AttackConfig(), seed=0)
    with PassCounter() as count:
        (phase,) = objective.phases(*images()[:3])
        phase.loss.backward(inputs=objective.parameters()["model"])
    n, g = convolutions(model.classifier(part)), 0
    if part != "x":
        g = sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.generator.modules())
    assert count.forward == n + g
    assert count.weight_gradients == n
    assert count.input_gradients == n - 1
    assert CDVAEClassifier.passes(objective.config, objective.strength) == 3


def test_bf16_trains_with_finite_losses_near_those_of_fp32() -> None:
    losses = {}
    for name in ("fp32", "bf16"):
        objective = objective_of("r")
        config = replace(PRESETS["digits-cdvae-r"], precision=name)
        losses[name] = Engine(objective, config, CPU).step(images(), lr=1e-3)["loss"]
        assert all(bool(torch.isfinite(p).all()) for p in objective.model.parameters())
    assert losses["bf16"].dtype == torch.float32
    assert losses["bf16"].item() == pytest.approx(losses["fp32"].item(), rel=0.05)


def test_a_part_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"--objective.part is 'z', expected one of x, g, r"):
        CDVAEClassifier.Config(part="z")


def test_a_network_without_the_way_is_refused() -> None:
    with pytest.raises(UserError, match=r"trains ways r of a ClassDisentangled.*digits_vae_r"):
        CDVAEClassifier(network("n"), CDVAEClassifier.Config(part="g"), AttackConfig(), seed=0)


def test_a_g_that_was_never_trained_is_refused_and_leaves_no_run(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    config = replace(PRESETS["digits-cdvae-g"], out=out, device="cpu", tensorboard=False)
    with pytest.raises(UserError, match=r"the auto-encoder was never trained.*--start-from RUN") as error:
        fit(config)
    assert "\n" not in str(error.value)
    assert not (out / "config.json").exists()


@pytest.mark.parametrize("part", "xgr")
def test_a_g_that_has_seen_batches_is_taken_and_x_needs_none(part: str) -> None:
    objective_of(part).started()
