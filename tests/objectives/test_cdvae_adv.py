"""CD-VAE against white-box attacks: each form's losses by hand, who counts, who moves, whole steps, passes."""

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

from robustfast.attacks import AttackConfig, MarginPGD, eval_mode
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.models import NETWORKS, ClassDisentangled
from robustfast.models.autoencoder import Autoencoder, Coded
from robustfast.models.autoencoders import AUTOENCODERS, Kind
from robustfast.objectives import CDVAEAdv
from robustfast.objectives.cdvae_adv import kept_mean, most_likely_wrong, within_margin
from robustfast.seeds import derive
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS

ATTACK = AttackConfig(eps=0.1, step_size=0.03, steps=4)
SEED, EPOCH = 5, 2
FORMS: list[dict[str, Any]] = [
    {},
    {"clean": True},
    {"form": "paper"},
    {"form": "code"},
]
NAMES = ["recommended", "recommended with clean images", "paper", "code"]


def network(dtype: torch.dtype = torch.float32) -> ClassDisentangled:
    found = NETWORKS["digits_vae_rn"]("digits_cnn", num_classes=10, in_channels=1).to(dtype)
    assert isinstance(found, ClassDisentangled)
    return found


def build(model: nn.Module, attack: AttackConfig = ATTACK, **fields: Any) -> CDVAEAdv:
    objective = CDVAEAdv(model, CDVAEAdv.Config(**fields), attack, seed=SEED)
    objective.begin(EPOCH, 0.5)
    return objective


# --- by hand: two pixels, two weights, three classes ------------------------------------------------------------------


class Half(Autoencoder):
    """G(x) = share * x, with |x|^2 for a regulariser."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share, dtype=torch.float64))

    def forward(self, x: Tensor, *, seed: int | None = None, index: Tensor | None = None) -> Coded:
        flat = x.flatten(1)
        return Coded(self.share * x, flat, self.share * flat.square().sum(1))


class Pixels(nn.Module):
    features = 3

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


SHARE, BETA, GAMMA_G, GAMMA_R = 0.5, 0.25, 2.0, 3.0
# Three pixels are the logits of three classes, times the factor of the classifier.
CLEAN = ((0.9, 0.1, 0.2), (0.3, 0.4, 0.5), (0.1, 0.8, 0.3))
ATTACKED = ((0.6, 0.4, 0.1), (0.5, 0.2, 0.45), (0.2, 0.9, 0.0))
LABELS = (0, 2, 1)
FACTOR = {"g": 4.0, "r": 2.0}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Half` by its name, on images that are taken as they are."""
    monkeypatch.setitem(AUTOENCODERS, "half", Kind(lambda in_channels: Half(SHARE), (0.0,), (1.0,)))


def toy(**fields: Any) -> CDVAEAdv:
    """The objective around a network whose every number is above."""
    model = ClassDisentangled(
        Pixels, num_classes=3, in_channels=1, autoencoder="half", readings="rn"
    ).double()
    with torch.no_grad():
        for part, factor in FACTOR.items():
            model.classifier(part).classifier.weight.copy_(factor * torch.eye(3))
            model.classifier(part).classifier.bias.zero_()
    settings = {"beta": BETA, "gamma_g": GAMMA_G, "gamma_r": GAMMA_R, **fields}
    objective = build(model, **settings)
    objective.attack = lambda *_, **__: pixels(ATTACKED)
    return objective


def pixels(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 1, 1, 3)


def ce(part: str, image: tuple[float, ...], label: int) -> float:
    share = SHARE if part == "g" else 1 - SHARE
    logits = [FACTOR[part] * share * pixel for pixel in image]
    return math.log(sum(math.exp(value) for value in logits)) - logits[label]


def g_logits(image: tuple[float, ...]) -> list[float]:
    return [FACTOR["g"] * SHARE * pixel for pixel in image]


def squares(image: tuple[float, ...], target: tuple[float, ...]) -> float:
    return sum((SHARE * p - t) ** 2 for p, t in zip(image, target, strict=True)) / 3


def regulariser(image: tuple[float, ...]) -> float:
    return SHARE * sum(pixel**2 for pixel in image)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def by_hand(form: str, kept: list[int], clean: bool) -> float:
    """The whole loss, in plain Python, of samples `kept`."""
    of_images = kept if form == "paper" else [0, 1, 2]
    of_r = [0, 1, 2] if form == "code" else kept
    target = ATTACKED if form == "paper" else CLEAN
    labels = []
    for image, label in zip(ATTACKED, LABELS, strict=True):
        logits = g_logits(image)
        classes = [j for j in range(3) if form == "code" or j != label]
        labels.append(max(classes, key=logits.__getitem__))
    total = mean([squares(ATTACKED[k], target[k]) for k in of_images])
    total += BETA * mean([regulariser(ATTACKED[k]) for k in of_images])
    total += GAMMA_G * mean([ce("g", ATTACKED[k], LABELS[k]) for k in kept])
    total += GAMMA_R * mean([ce("r", ATTACKED[k], labels[k]) for k in of_r])
    if clean:
        total += mean([squares(image, image) for image in CLEAN])
        total += BETA * mean([regulariser(image) for image in CLEAN])
        total += GAMMA_R * mean([ce("r", image, label) for image, label in zip(CLEAN, LABELS, strict=True)])
    return total


def leads(form: str) -> list[float]:
    found = []
    for image, label in zip(ATTACKED, LABELS, strict=True):
        scores = g_logits(image)
        if form == "paper":
            total = sum(math.exp(value) for value in scores)
            scores = [math.exp(value) / total for value in scores]
        found.append(scores[label] - max(score for j, score in enumerate(scores) if j != label))
    return found


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("form", ["recommended", "paper", "code"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("clean", [False, True])
def test_losses_by_hand(form: str, count: int, clean: bool) -> None:
    order = sorted(leads(form))
    edges = [order[0] - 0.02, *order, order[-1] + 0.02]
    margin = (edges[count] + edges[count + 1]) / 2
    kept = [k for k, lead in enumerate(leads(form)) if lead <= margin]
    assert len(kept) == count
    objective = toy(form=form, margin=margin, clean=clean)
    (phase,) = objective.phases(pixels(CLEAN), torch.tensor(LABELS), torch.arange(3))
    assert phase.optimizer == "model"
    assert phase.loss.item() == pytest.approx(by_hand(form, kept, clean or form == "paper"), rel=1e-12)
    assert phase.terms["kept"].item() == pytest.approx(count / 3)
    phase.loss.backward()
    grads = {name: p.grad for name, p in objective.model.named_parameters()}
    assert all(grad is None or bool(grad.isfinite().all()) for grad in grads.values())
    if not count:
        # Nobody is within the margin: D_G learns nothing, and no term is nan.
        assert phase.terms["ce_g"].item() == 0
        assert float(grads["classifier_g.classifier.weight"].abs().sum()) == 0


def test_the_forms_differ() -> None:
    """Sample 0 is the right class all the same, so that "any class" and "the most likely wrong one" part ways."""
    kept = [0, 1]
    values = [by_hand(form, kept, False) for form in ("recommended", "paper", "code")]
    assert len(set(values)) == 3


def test_an_empty_set_has_a_mean_of_zero_and_a_gradient_of_zero() -> None:
    values = torch.tensor([1.0, math.inf], requires_grad=True)
    nothing = torch.zeros(2, dtype=torch.bool)
    found = kept_mean(values, nothing)
    found.backward()
    assert found.item() == 0
    assert values.grad is not None
    assert values.grad.tolist() == [0, 0]
    # What is not kept weighs nothing, whatever it is.
    assert kept_mean(values.detach(), torch.tensor([True, False])).item() == 1


def test_who_is_within_the_margin() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.0, 0.5], [0.0, 3.0, 3.0]], dtype=torch.float64)
    y = torch.tensor([0, 2, 1])
    assert within_margin(scores, y, 1.0).tolist() == [False, True, True]
    assert within_margin(scores, y, 1.0, closed=True).tolist() == [True, True, True]
    assert within_margin(scores, y, -1.5).tolist() == [False, False, False]
    assert within_margin(scores, y, -1.5, closed=True).tolist() == [False, True, False]
    assert most_likely_wrong(scores, y).tolist() == [1, 0, 2]


# --- a real network ---------------------------------------------------------------------------------------------------


def some_right(model: ClassDisentangled, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The batch with labels of which the attacked way gets all but the last two right."""
    x, _, index = batch
    with eval_mode(model), torch.no_grad():
        y = model.way("r")(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 10
    return x, y, index


def test_the_attack_is_pgd_on_the_margin_and_spares_what_is_wrong_already(batch: Any) -> None:
    model = network().train()
    model.classifier_r.eval()
    modes = [part.training for part in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    objective = build(model, replace(ATTACK, ramp=1.0), kappa=3.0)
    x, y, index = some_right(model, batch)
    x_adv = objective.attack(x, y, index, **objective.now())
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    eps = 0.05  # half of the way through the ramp
    plain = MarginPGD(model.way("r"), eps, kappa=3.0, steps=4, step_size=eps / 2, seed=SEED)
    assert torch.equal(x_adv[:-2], plain(x, y, index, epoch=EPOCH)[:-2])
    assert torch.equal(x_adv[-2:], x[-2:])
    assert 0.04 < float((x_adv - x).abs().amax()) <= eps + 1e-6


def test_who_counts_is_told_by_the_attacked_network(batch: Any) -> None:
    """In eval mode, by the mean of the posterior, without a trace in the batch norms."""
    model = network().train()
    objective = build(model)
    x, y, _ = batch
    with eval_mode(model), torch.no_grad():
        logits = model.way("r")(x)
    before = {name: value.clone() for name, value in model.named_buffers()}
    _, label = objective._judged(x, y)
    assert torch.equal(label, most_likely_wrong(logits, y))
    assert (label != y).all()
    assert torch.equal(build(model, form="code")._judged(x, logits.argmax(1))[1], logits.argmax(1))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("term", ["ce_g", "ce_r"])
def test_each_cross_entropy_reaches_g_and_its_own_classifier_alone(batch: Any, term: str) -> None:
    model = network().train()
    weights = {"gamma_g": 0.0, "gamma_r": 0.0, "beta": 0.0}
    weights["gamma_g" if term == "ce_g" else "gamma_r"] = 1.0
    objective = build(model, **weights)
    grads = {}
    for gamma in (0.0, 1.0):
        objective.config = replace(objective.config, **{key: gamma * value for key, value in weights.items()})
        x, y, index = batch
        (phase,) = objective.phases(x, y, index)
        model.zero_grad()
        phase.loss.backward()
        grads[gamma] = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        }
    moved = {name.split(".")[0] for name in grads[1.0] if not torch.equal(grads[0.0][name], grads[1.0][name])}
    assert moved == {"generator", "classifier_g" if term == "ce_g" else "classifier_r"}


def test_one_optimizer_moves_all_three_networks() -> None:
    model = network()
    assert {id(p) for p in build(model).parameters()["model"]} == {id(p) for p in model.parameters()}


def lead(objective: CDVAEAdv, model: ClassDisentangled, x_adv: Tensor, y: Tensor) -> Tensor:
    """By how much class y leads in D_G(G(x')), in what the form compares."""
    with eval_mode(model), torch.no_grad():
        scores = model.way("r")(x_adv)
    if objective.config.form == "paper":
        scores = scores.softmax(1)
    own = scores[torch.arange(len(y)), y]
    scores[torch.arange(len(y)), y] = -torch.inf
    return own - scores.amax(1)


def plain_loss(
    objective: CDVAEAdv, model: ClassDisentangled, x: Tensor, x_adv: Tensor, y: Tensor, index: Tensor
) -> Tensor:
    """The loss as one would write it down, of samples picked by their indices."""
    config = objective.config
    mean, std = model.normalisation.mean, model.normalisation.std
    with eval_mode(model), torch.no_grad():
        logits = model.classifier_g(model.generator((x_adv - mean) / std).image)
    rest = logits.clone()
    rest[torch.arange(len(y)), y] = -torch.inf
    kept = torch.nonzero(lead(objective, model, x_adv, y) < config.lead)[:, 0]
    whole = (x_adv - mean) / std
    coded = model.generator(whole, seed=derive(SEED, "posterior", EPOCH), index=index)
    g, r, target = coded.image, whole - coded.image, (x - mean) / std
    logits_g, logits_r = model.classifier_g(g), model.classifier_r(r)
    if config.form == "paper":
        loss = F.mse_loss(g[kept], whole[kept]) + config.beta * coded.regulariser[kept].mean()
    else:
        loss = F.mse_loss(g, target) + config.beta * coded.regulariser.mean()
    loss = loss + config.gamma_g * F.cross_entropy(logits_g[kept], y[kept])
    if config.form == "code":
        loss = loss + config.gamma_r * F.cross_entropy(logits_r, logits.argmax(1))
    else:
        loss = loss + config.gamma_r * F.cross_entropy(logits_r[kept], rest.argmax(1)[kept])
    if config.clean or config.form == "paper":
        coded = model.generator(target, seed=derive(SEED, "clean posterior", EPOCH), index=index)
        loss = loss + F.mse_loss(coded.image, target) + config.beta * coded.regulariser.mean()
        loss = loss + config.gamma_r * F.cross_entropy(model.classifier_r(target - coded.image), y)
    return loss


@pytest.mark.parametrize("fields", FORMS, ids=NAMES)
@pytest.mark.parametrize(
    ("dtype", "steps", "error"), [(torch.float32, 1, 1e-6), (torch.float64, 3, 1e-12)], ids=str
)
def test_a_step_is_that_of_a_plain_writing(
    fields: dict[str, Any], dtype: torch.dtype, steps: int, error: float
) -> None:
    model = network(dtype).train()
    objective = build(model, gamma_g=1.0, gamma_r=0.5, beta=0.1, **fields)
    twin = copy.deepcopy(model)
    config = replace(PRESETS["digits-cdvae-adv"], clip_value=0.01)
    engine = Engine(objective, config, torch.device("cpu"))
    optimizer = torch.optim.SGD(
        twin.parameters(), lr=0.1, momentum=config.momentum, weight_decay=config.weight_decay
    )
    attack = MarginPGD(twin.way("r"), 0.1, kappa=10.0, steps=4, step_size=0.05, seed=SEED)
    shares = []
    for number in range(steps):
        x, index = torch.rand(8, 1, 8, 8).to(dtype), torch.arange(8) + 8 * number
        x, y, index = some_right(model, (x, x, index))
        with eval_mode(twin), torch.no_grad():
            right = twin.way("r")(x).argmax(1) == y
        x_adv = x.clone()
        x_adv[right] = attack(x, y, index, epoch=EPOCH)[right]
        # Of each batch half is kept.
        order = lead(objective, twin, x_adv, y).sort().values
        objective.config = replace(objective.config, margin=float(order[3] + order[4]) / 2)
        shares.append(float(engine.step(Batch(x, y, index), lr=0.1)["kept"]))
        optimizer.zero_grad()
        plain_loss(objective, twin, x, x_adv, y, index).backward()
        torch.nn.utils.clip_grad_value_(twin.parameters(), 0.01)
        optimizer.step()
    assert shares == [0.5] * steps
    expected = twin.state_dict()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=error, atol=error), name


@pytest.mark.parametrize(("fields", "total"), [({}, 28), ({"clean": True}, 31), ({"form": "paper"}, 31)])
def test_a_training_step_costs_what_the_mathematics_needs(
    batch: Any, fields: dict[str, Any], total: int
) -> None:
    """Ten attack steps, a look at who is right, one at who is kept, one pass of G and two classifiers."""
    model = network()
    objective = build(model, replace(ATTACK, steps=10), **fields)
    assert CDVAEAdv.passes(objective.config, objective.strength) == total
    g = convolutions(model.generator) + sum(
        isinstance(part, nn.ConvTranspose2d) for part in model.generator.modules()
    )
    d = convolutions(model.classifier_g)
    x, y, index = some_right(model, batch)
    with PassCounter() as step:
        (phase,) = objective.phases(x, y, index)
        phase.loss.backward()
    clean = total == 31
    assert step.forward == 12 * (g + d) + g + 2 * d + clean * (g + d)
    assert step.weight_gradients == g + 2 * d + clean * (g + d)
    # In training the images need no gradient, so G's first convolution computes none.
    trained = g - 1 + 2 * d + clean * (g - 1 + d)
    assert step.input_gradients == 10 * (g + d) + trained


def test_draws_are_those_of_the_run_the_epoch_and_the_sample(batch: Any) -> None:
    model = network().train()
    x, y, index = batch
    torch.manual_seed(1)
    state = torch.get_rng_state()

    def loss(epoch: int) -> float:
        objective = build(copy.deepcopy(model))
        objective.attack = lambda x, *_, **__: x
        objective.begin(epoch, 0.5)
        (phase,) = objective.phases(x, y, index)
        return phase.loss.item()

    assert loss(0) == loss(0) != loss(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match=r"CDVAEAdv trains ways r, n of a ClassDisentangled, got a "):
        build(NETWORKS["three_way"]("digits_cnn", num_classes=10, in_channels=1))
    with pytest.raises(
        UserError, match=r"auto-encoder was never trained.*--start-from RUN,classifier_g=RUN2"
    ):
        build(network()).started()
    trained = network()
    trained.generator(torch.rand(2, 1, 8, 8))
    with pytest.raises(UserError, match=r"classifier of G\(x\) was never trained.*classifier_g=RUN2"):
        build(trained).started()
    trained.classifier("g")(torch.rand(2, 1, 8, 8))
    build(trained).started()
    for fields, message in (
        ({"form": "both"}, "--objective.form is 'both', expected one of recommended, paper, code"),
        ({"gamma_g": -1.0}, "--objective.gamma-g is -1.0, expected a finite number from 0"),
        ({"kappa": math.inf}, "--objective.kappa is inf, expected a finite number from 0"),
        ({"margin": math.nan}, "--objective.margin is nan, expected a difference of logits or, in form paper, of "
                               "probabilities"),
        ({"form": "paper", "margin": 20.0}, "--objective.margin is 20.0 with --objective.form paper, which compares "
                                            "probabilities: expected a number from -1 to 1, as 0.1"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            CDVAEAdv.Config(**fields)
        assert str(caught.value) == message
    assert (CDVAEAdv.Config().lead, CDVAEAdv.Config(form="code").lead, CDVAEAdv.Config(form="paper").lead) == (
        20.0, 20.0, 0.1,
    )  # fmt: skip
