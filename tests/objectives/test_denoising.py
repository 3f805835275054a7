"""HGD and APE-GAN: losses by hand, who moves in which step, the classifier that never moves, and what they gain."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_made import Scale, images
from pass_counter import PassCounter
from torch import Tensor, nn

from robustfast.attacks import PGD, AttackConfig
from robustfast.data import Batch, load
from robustfast.errors import UserError
from robustfast.models import ClassDisentangled, Denoised, ImageDiscriminator, OneWay, ThreeWay
from robustfast.models.class_disentangled import Normalisation
from robustfast.objectives import APEGAN, HGD
from robustfast.objectives.denoising import Denoising
from robustfast.training.engine import Engine
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run
from robustfast.training.run_objective import run_objective

ATTACK = AttackConfig(eps=0.1, step_size=0.03, steps=3)
SEED, EPOCH = 5, 2
KINDS: dict[type[Denoising], str] = {HGD: "digits_unet", APEGAN: "digits_ape"}
both = pytest.mark.parametrize("kind", KINDS)


def denoised(kind: type[Denoising], dtype: torch.dtype = torch.float32) -> Denoised:
    model = Denoised("digits_cnn", num_classes=10, in_channels=1, denoiser=KINDS[kind]).to(dtype)
    for name, buffer in model.classifier_x.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.add_(0.3)  # as if it had been trained
    return model


def build(kind: type[Denoising], model: nn.Module, attack: AttackConfig = ATTACK, **fields: Any) -> Denoising:
    return kind(model, kind.Config(**fields), attack, seed=SEED)  # type: ignore[arg-type]


class Dim(nn.Module):
    """Pixels times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.in_channels = 1
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))


def hand_made(classifier: float, denoiser: float) -> Denoised:
    """Logits are `classifier` times (pixels - 0.25) / 0.5; the denoiser multiplies pixels. Float64."""
    model = Denoised(Scale, num_classes=2, in_channels=1, denoiser="digits_unet")
    model.normalisation = Normalisation((0.25,), (0.5,))
    model.classifier_x.encoder = Scale(classifier)
    model.denoiser = Dim(denoiser)
    with torch.no_grad():
        model.classifier_x.classifier.weight.copy_(torch.eye(2))
        model.classifier_x.classifier.bias.zero_()
    return model.double()


def phases_by_hand(objective: Denoising) -> Iterator[Any]:
    objective.attack = lambda *_, **__: images(*ATTACKED)
    return objective.phases(images(*CLEAN), torch.tensor([1, 0]), torch.arange(2))


def pairs() -> Iterator[tuple[float, float]]:
    """Each pixel, clean and attacked."""
    for one, other in zip(CLEAN, ATTACKED, strict=True):
        yield from zip(one, other, strict=True)


def test_loss_of_hgd_by_hand() -> None:
    model = hand_made(3.0, 0.8)
    (phase,) = phases_by_hand(build(HGD, model))
    # The mean |h(0.8 x') - h(x)| over two images of two logits: the normalisation's mean cancels, its 0.5 does not.
    expected = sum(abs(3 * (0.8 * x_adv - x) / 0.5) for x, x_adv in pairs()) / 4
    assert phase.optimizer == "denoiser"
    assert phase.loss.item() == pytest.approx(expected, rel=1e-13)
    assert phase.terms == {"logits": phase.loss.detach()}
    phase.loss.backward(inputs=[model.denoiser.factor])
    slope = sum(math.copysign(3 * x_adv / 0.5, 0.8 * x_adv - x) for x, x_adv in pairs()) / 4
    assert model.denoiser.factor.grad.item() == pytest.approx(slope, rel=1e-13)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


class Sum(nn.Module):
    """A logit: the sum of the pixels, weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -3.0], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("fields", [{}, {"mse": 2.0, "adversarial": 0.5}], ids=["published", "own weights"])
def test_losses_of_ape_gan_by_hand(fields: dict[str, float]) -> None:
    objective = build(APEGAN, hand_made(3.0, 0.8), **fields)
    objective.discriminator = Sum()
    phases = phases_by_hand(objective)
    told = next(phases)
    clean = [2 * a - 3 * b for a, b in CLEAN]
    painted = [0.8 * (2 * a - 3 * b) for a, b in ATTACKED]
    expected = (sum(softplus(-v) for v in clean) + sum(softplus(v) for v in painted)) / 2
    assert (told.optimizer, told.loss.item()) == ("discriminator", pytest.approx(expected, rel=1e-13))
    assert told.terms == {"discriminator": told.loss.detach()}
    with torch.no_grad():  # step 1 moves the discriminator, and step 2 sees it
        objective.discriminator.weight.neg_()
    fooled = next(phases)
    mse = sum((2 * (0.8 * x_adv - x)) ** 2 for x, x_adv in pairs()) / 4
    adversarial = sum(softplus(v) for v in painted) / 2
    weights = {"mse": 0.7, "adversarial": 0.3} | fields
    expected = weights["mse"] * mse + weights["adversarial"] * adversarial
    assert (fooled.optimizer, fooled.loss.item()) == ("denoiser", pytest.approx(expected, rel=1e-13))
    assert fooled.terms["mse"].item() == pytest.approx(mse, rel=1e-13)
    assert fooled.terms["adversarial"].item() == pytest.approx(adversarial, rel=1e-13)
    assert not any(value.requires_grad for value in fooled.terms.values())
    assert next(phases, None) is None


@both
def test_each_step_moves_what_it_is_to_move_and_the_classifier_stays(
    kind: type[Denoising], batch: Any
) -> None:
    model = denoised(kind).train()
    objective = build(kind, model)
    modules = {"model": model, **objective.networks()}
    named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    kept = copy.deepcopy(model.classifier_x.state_dict())
    modes = [part.training for part in model.modules()]
    moved = {}
    for phase in objective.phases(*batch):
        parameters = objective.parameters()[phase.optimizer]
        before = {name: p.detach().clone() for name, p in named.items()}
        phase.loss.backward(inputs=parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        moved[phase.optimizer] = {name for name, p in named.items() if not torch.equal(p, before[name])}
        assert [part.training for part in model.modules()] == modes
    # A bias before a batch norm has no gradient but rounding's.
    shifts = {
        f"model.denoiser.{name}.bias"
        for name, part in model.denoiser.named_modules()
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.bias is not None
    }
    denoiser = {name for name in named if name.startswith("model.denoiser.")}
    assert denoiser - shifts <= moved.pop("denoiser") <= denoiser
    if kind is APEGAN:
        psi = {name for name in named if name.startswith("discriminator.")}
        shifts = {"discriminator.layers.2.bias", "discriminator.layers.5.bias"}
        assert psi - shifts <= moved.pop("discriminator") <= psi
    assert not moved
    # Weights, running statistics and counters, to the bit.
    for name, value in model.classifier_x.state_dict().items():
        assert torch.equal(value, kept[name]), name
    # The batch norms of the denoiser saw the attacked images, once.
    counters = [int(v) for n, v in model.denoiser.named_buffers() if n.endswith("num_batches_tracked")]
    assert set(counters) == {1}


@both
def test_the_attack_sees_the_classifier_alone(kind: type[Denoising], batch: Any) -> None:
    model = denoised(kind)
    objective = build(kind, model, AttackConfig(eps=0.2, step_size=0.05, steps=3, ramp=0.5))
    x, y, index = batch
    objective.begin(EPOCH, 0.25)
    found = objective.attack(x, y, index, **objective.now())  # type: ignore[misc]

    def plain(images: Tensor) -> Tensor:
        return model.classifier_x((images - 0.3053) / 0.3760)

    model.classifier_x.eval()
    expected = PGD(plain, eps=0.1, step_size=0.025, steps=3, seed=SEED)(x, y, index, epoch=EPOCH)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found - x).abs().max().item() == pytest.approx(0.1, abs=1e-6)


def config() -> Any:
    return replace(PRESETS["digits-cdvae-hgd"], optimizer="sgd", momentum=0.9, weight_decay=1e-3)


def written_plainly(
    kind: type[Denoising],
    model: Denoised,
    discriminator: nn.Module | None,
    batches: list[Batch],
    lr: float,
) -> None:
    """A step of either method as people write it, with a pass of the denoiser wherever it is looked at."""
    denoiser, classifier = model.denoiser, model.classifier_x
    settings = {"lr": lr, "momentum": 0.9, "weight_decay": 1e-3}
    theta = torch.optim.SGD(denoiser.parameters(), **settings)
    psi = None if discriminator is None else torch.optim.SGD(discriminator.parameters(), **settings)

    def logits(images: Tensor) -> Tensor:
        # Numbers of float32 also where the rest is float64.
        mean, std = torch.tensor([0.3053, 0.3760]).to(images.dtype)
        return classifier.classifier(classifier.encoder((images - mean) / std))

    classifier.eval()
    attack = PGD(logits, seed=SEED, **ATTACK.keywords())
    for x, y, index, _ in batches:
        x_adv = attack(x, y, index, epoch=EPOCH)
        if discriminator is None or psi is None:
            theta.zero_grad()
            F.l1_loss(logits(denoiser(x_adv)), logits(x).detach()).backward()
            theta.step()
            continue
        psi.zero_grad()
        made = denoiser(x_adv)
        out = torch.cat([discriminator(x), discriminator(made.detach())])
        real = torch.cat([torch.ones_like(y), torch.zeros_like(y)]).to(x.dtype)
        (2 * F.binary_cross_entropy_with_logits(out, real)).backward()
        psi.step()
        theta.zero_grad()
        out = discriminator(made)
        error = F.mse_loss(2 * made - 1, 2 * x - 1)
        (0.7 * error + 0.3 * F.binary_cross_entropy_with_logits(out, torch.ones_like(out))).backward()
        theta.step()


@both
@pytest.mark.parametrize(
    ("dtype", "steps", "error"), [(torch.float32, 1, 1e-6), (torch.float64, 3, 1e-12)], ids=str
)
def test_a_step_is_that_of_a_plain_writing(
    kind: type[Denoising], dtype: torch.dtype, steps: int, error: float
) -> None:
    model = denoised(kind, dtype).train()
    objective = build(kind, model)
    twin, discriminator = copy.deepcopy(model), copy.deepcopy(objective.networks().get("discriminator"))
    batches = []
    for number in range(steps):
        x, index = torch.rand(8, 1, 8, 8).to(dtype), torch.arange(8) + 8 * number
        batches.append(Batch(x, torch.randint(10, (8,)), index))
    objective.begin(EPOCH, 0.5)
    engine = Engine(objective, config(), torch.device("cpu"))
    for one in batches:
        engine.step(one, lr=0.01)
    written_plainly(kind, twin, discriminator, batches, 0.01)
    pairs = [(model, twin)]
    if discriminator is not None:
        pairs.append((objective.networks()["discriminator"], discriminator))
    for mine, theirs in pairs:
        expected = theirs.state_dict()
        for name, value in mine.state_dict().items():
            assert torch.allclose(value, expected[name], rtol=error, atol=error), name


def convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in module.modules())


@both
def test_a_training_step_costs_what_the_mathematics_needs(kind: type[Denoising], batch: Any) -> None:
    model = denoised(kind)
    strength = AttackConfig(eps=0.1, step_size=0.03, steps=10)
    objective = build(kind, model, strength)
    with PassCounter() as step:
        for phase in objective.phases(*batch):
            phase.loss.backward(inputs=objective.parameters()[phase.optimizer])
    n, u = convolutions(model.classifier_x), convolutions(model.denoiser)
    # The images need no gradient, so the first convolution of a pass that starts from them computes none.
    if kind is HGD:
        assert step.forward == 10 * n + 2 * n + u
        assert step.input_gradients == 10 * n + n + (u - 1)
        assert step.weight_gradients == u
        assert kind.passes(kind.Config(), strength) == 20 + 3 + 3
    else:
        d = convolutions(objective.networks()["discriminator"])
        assert step.forward == 10 * n + u + 3 * d
        assert step.input_gradients == 10 * n + (u - 1) + 2 * (d - 1) + d
        assert step.weight_gradients == u + 2 * d
        assert kind.passes(kind.Config(), strength) == 20 + 3


def test_the_discriminator_derives_from_the_seed_alone_and_is_kept_with_the_run() -> None:
    model = denoised(APEGAN)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build(APEGAN, model)
    assert torch.equal(torch.rand(3), expected)  # the global generator was not read
    again = build(APEGAN, model)
    other = APEGAN(model, APEGAN.Config(), ATTACK, seed=SEED + 1)
    weights = [objective.networks()["discriminator"].judge.weight for objective in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert isinstance(first.networks()["discriminator"], ImageDiscriminator)


@both
def test_bfloat16_autocast_gives_float32_losses(kind: type[Denoising], batch: Any) -> None:
    objective = build(kind, denoised(kind))
    run = objective.phases(*batch)
    for _ in objective.parameters():
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            phase = next(run)
        assert phase.loss.dtype == torch.float32
        assert {value.dtype for value in phase.terms.values()} == {torch.float32}
        phase.loss.backward(inputs=objective.parameters()[phase.optimizer])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the undefended classifier."""
    return fit(short("digits-cdvae-x", tmp_path_factory.mktemp("plain"), epochs=6))


def short(preset: str, out: Path, **fields: Any) -> Any:
    quiet = {"validate_every": 0, "tensorboard": False, "device": "cpu", "threads": 1}
    return replace(PRESETS[preset], out=out, **quiet, **fields)


@pytest.mark.parametrize(
    ("preset", "fields"),
    [("digits-cdvae-hgd", {"epochs": 5, "lr": 3e-3}), ("digits-cdvae-ape-gan", {"epochs": 4})],
    ids=["hgd", "ape-gan"],
)
def test_a_short_training_holds_what_attacks_on_the_classifier_cost(
    preset: str, fields: dict[str, Any], plain: Path, tmp_path: Path
) -> None:
    strength = replace(PRESETS[preset].attack, steps=3, step_size=0.08)
    run = load_run(fit(short(preset, tmp_path / "run", start_from=(str(plain),), attack=strength, **fields)))
    source = load_run(plain).model
    test = load("digits", "test")
    x, y = test.images.float() / test.scale, test.labels
    x_adv = PGD(source.way("s"), eps=strength.eps, steps=20)(x, y)

    def accuracy(way: Callable[[Tensor], Tensor], images: Tensor) -> float:
        with torch.no_grad():
            return (way(images).argmax(1) == y).double().mean().item()

    undefended, defended = accuracy(source.way("s"), x_adv), accuracy(run.model.way("r"), x_adv)
    assert defended > undefended + 0.2
    assert accuracy(run.model.way("r"), x) > 0.7
    # The classifier is the one that the run started from, to the bit.
    assert isinstance(source, ClassDisentangled)
    theirs = source.classifier_x.state_dict()
    assert all(
        torch.equal(value, theirs[name]) for name, value in run.model.classifier_x.state_dict().items()
    )
    if preset.endswith("ape-gan"):
        fresh = build(APEGAN, run.model).networks()["discriminator"].judge.weight
        kept = run_objective(run).networks()["discriminator"].judge.weight
        assert not torch.equal(fresh, kept)


def test_what_they_refuse(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"HGD trains ways r of a Denoised, got a ThreeWay: .*digits_unet"):
        build(HGD, ThreeWay("digits_cnn", num_classes=10, in_channels=1))
    with pytest.raises(UserError, match="APEGAN trains ways r of a Denoised, got a OneWay"):
        build(APEGAN, OneWay("digits_cnn", num_classes=10, in_channels=1))
    with pytest.raises(UserError, match=r"--objective\.mse is nan, expected a finite number from 0"):
        APEGAN.Config(mse=math.nan)
    with pytest.raises(
        UserError, match=r"--objective\.adversarial is -1\.0, expected a finite number from 0"
    ):
        APEGAN.Config(adversarial=-1.0)
    with pytest.raises(UserError, match="was never trained, and is not trained here: give --start-from RUN"):
        fit(short("digits-cdvae-hgd", tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()
