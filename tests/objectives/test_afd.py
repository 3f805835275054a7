"""AFD: its losses by hand, who moves in which step, and a whole step against Algorithm 1 as people write it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hand_made import Scale, images
from pass_counter import PassCounter, convolutions
from torch import Tensor, nn

from robustfast.attacks import APGD, AttackConfig, eval_mode
from robustfast.attacks.draws import uniform
from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.models import OneWay, ProjectionDiscriminator, ThreeWay
from robustfast.objectives import AFDDCGAN, AFDWGAN
from robustfast.objectives.afd import AFD
from robustfast.seeds import derive
from robustfast.training.config import TrainConfig
from robustfast.training.engine import Engine
from robustfast.training.presets import PRESETS

ATTACK = AttackConfig(eps=0.1, step_size=0.03, steps=4)
SEED, EPOCH = 5, 2
GAMES: list[tuple[type[AFD], dict[str, Any]]] = [(AFDDCGAN, {}), (AFDWGAN, {}), (AFDWGAN, {"gp": 2.0})]
NAMES = ["dcgan", "wgan", "wgan with a penalty"]


def one_way(dtype: torch.dtype = torch.float32) -> OneWay:
    return OneWay("digits_cnn", num_classes=10, in_channels=1, unit_norm=True).to(dtype)


def build(kind: type[AFD], model: nn.Module, attack: AttackConfig = ATTACK, **fields: Any) -> AFD:
    return kind(model, kind.Config(**fields), attack, seed=SEED)


def some_right(model: OneWay, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The batch with labels of which the model gets all but the last two right."""
    x, _, index = batch
    with eval_mode(model), torch.no_grad():
        y = model(x).argmax(1)
    y[-2:] = (y[-2:] + 1) % 10
    return x, y, index


class Linear(nn.Module):
    """D(z, y) = weight . z + shift[y], where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        logit = z @ self.weight
        return (logit if y is None else logit + self.shift[y]).unsqueeze(1)


CLEAN, ATTACKED, LABELS = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35)), (1, 0)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def score(factor: float, pixels: tuple[float, float], label: int) -> float:
    return 3 * factor * pixels[0] - 4 * factor * pixels[1] + (0.5, -0.25)[label]


@pytest.mark.parametrize(("kind", "fields"), GAMES, ids=NAMES)
def test_losses_by_hand(kind: type[AFD], fields: dict[str, Any]) -> None:
    model = OneWay(Scale, num_classes=2).double()
    objective = build(kind, model, **fields)
    objective.discriminator = Linear()
    objective.attack = lambda *_, **__: images(*ATTACKED)
    with torch.no_grad():
        model.encoder.factor.fill_(2)
        model.classifier.weight.copy_(torch.eye(2))
        model.classifier.bias.zero_()
    seen = []
    for phase in objective.phases(images(*CLEAN), torch.tensor(LABELS), torch.arange(2)):
        seen.append((phase.optimizer, phase.loss.item(), dict(phase.terms)))
        if phase.optimizer == "classifier":
            with torch.no_grad():  # step 1 moves the encoder, and step 2 sees it
                model.encoder.factor.fill_(1.5)
        if phase.optimizer == "discriminator":
            with torch.no_grad():  # step 2 moves the discriminator, and step 3 sees it
                objective.discriminator.weight.neg_()
                objective.discriminator.shift.neg_()

    crossed = sum(
        math.log(sum(math.exp(2 * p) for p in pixels)) - 2 * pixels[label]
        for pixels, label in zip(CLEAN, LABELS, strict=True)
    )
    clean = [score(1.5, pixels, label) for pixels, label in zip(CLEAN, LABELS, strict=True)]
    attacked = [score(1.5, pixels, label) for pixels, label in zip(ATTACKED, LABELS, strict=True)]
    if kind is AFDDCGAN:
        told = sum(softplus(-d) for d in clean) + sum(softplus(d) for d in attacked)
        fooled = sum(softplus(d) for d in attacked)
    else:
        told, fooled = sum(attacked) - sum(clean), sum(attacked)
    penalty = (5 - 1) ** 2  # |(3, -4)| = 5 wherever it is taken
    expected = [crossed / 2, told / 2 + fields.get("gp", 0) * penalty, fooled / 2]
    assert [name for name, _, _ in seen] == ["classifier", "discriminator", "encoder"]
    assert [loss for _, loss, _ in seen] == pytest.approx(expected, rel=1e-13)
    terms = [{name: value.item() for name, value in terms.items()} for _, _, terms in seen]
    assert terms[0] == {"classifier": pytest.approx(crossed / 2)}
    assert terms[2] == {"encoder": pytest.approx(fooled / 2)}
    assert terms[1].pop("discriminator") == pytest.approx(told / 2)
    assert terms[1] == ({"penalty": pytest.approx(penalty)} if fields else {})
    assert not any(value.requires_grad for _, _, terms in seen for value in terms.values())


def test_penalty_is_taken_at_mixtures_keyed_by_the_images() -> None:
    objective = build(AFDWGAN, one_way(), gp=1.0)

    class Square(nn.Module):
        """D(u) = |u|^2, whose gradient is 2 u."""

        def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
            assert y is None
            return z.square().sum(1, keepdim=True)

    objective.discriminator = Square()
    clean, adversarial = torch.randn(2, 4, 3, dtype=torch.float64)
    index = torch.tensor([7, 3, 11, 5])
    objective.begin(EPOCH, 0.5)
    draw = uniform(index, (1,), seed=derive(SEED, "penalty", EPOCH), dtype=torch.float64)
    assert ((draw > 0) & (draw < 1)).all()
    u = draw * clean + (1 - draw) * adversarial
    found = objective.penalty(clean, adversarial, index)
    assert found.item() == pytest.approx((2 * u.norm(dim=1) - 1).square().mean().item(), rel=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    again = objective.penalty(clean[order], adversarial[order], index[order])
    assert again.item() == pytest.approx(found.item(), rel=1e-12)
    objective.begin(EPOCH + 1, 0.5)
    assert objective.penalty(clean, adversarial, index).item() != pytest.approx(found.item())


def test_losses_and_penalty_against_finite_differences() -> None:
    """In eval mode: what finite differences move, a power iteration would follow."""
    index, y = torch.tensor([4, 9, 2]), torch.tensor([1, 0, 2])
    clean, adversarial = torch.randn(2, 3, 4, dtype=torch.float64)
    for kind, fields in GAMES:
        model = OneWay(lambda: Features(4), num_classes=3, unit_norm=True).double()
        objective = build(kind, model, **fields)
        discriminator = objective.discriminator.eval()

        def losses(*_: Tensor, objective: AFD = objective) -> tuple[Tensor, ...]:
            d_clean, d_adversarial = (objective.discriminator(z, y) for z in (clean, adversarial))
            told = objective.told_apart(d_clean, d_adversarial)
            penalty = objective.penalty(clean, adversarial, index)
            return told + objective.penalty_weight() * penalty, objective.taken_for_clean(d_adversarial)

        assert torch.autograd.gradcheck(losses, tuple(discriminator.parameters()), atol=1e-6)


class Features(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(4, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(("kind", "fields"), GAMES, ids=NAMES)
def test_each_step_moves_what_it_is_to_move(kind: type[AFD], fields: dict[str, Any], batch: Any) -> None:
    model = one_way()
    objective = build(kind, model, **fields)
    modules = {"model": model, "discriminator": objective.discriminator}
    named = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    moved = []
    for phase in objective.phases(*some_right(model, batch)):
        parameters = objective.parameters()[phase.optimizer]
        before = {name: p.detach().clone() for name, p in named.items()}
        phase.loss.backward(inputs=parameters)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        moved.append({name for name, p in named.items() if not torch.equal(p, before[name])})
    theta = {name for name in named if name.startswith("model.encoder.")}
    phi = {name for name in named if name.startswith("model.classifier.")}
    psi = {name for name in named if name.startswith("discriminator.")}
    # The output's bias shifts both domains alike: a critic without a zero does not feel it.
    assert moved[0] == theta | phi
    assert moved[1] in (psi, psi - {"discriminator.output.bias"})
    assert moved[2] == theta
    assert theta | phi | psi == set(named)


def test_encoder_and_discriminator_have_learning_rates_of_their_own_and_no_weight_decay() -> None:
    objective = build(AFDWGAN, one_way(), encoder_lr=4.0, discriminator_lr=0.5)
    assert objective.optimizers() == {
        "discriminator": {"lr": 0.5, "weight_decay": 0.0},
        "encoder": {"lr": 4.0, "weight_decay": 0.0},
    }
    engine = Engine(objective, train_config(), torch.device("cpu"))
    assert {name: updater.factor for name, updater in engine.updaters.items()} == {
        "classifier": 1.0,
        "discriminator": 0.5,
        "encoder": 4.0,
    }


def train_config() -> TrainConfig:
    return PRESETS["digits-afd-wgan"]


def algorithm_1(
    objective: AFD, model: OneWay, discriminator: nn.Module, batches: list[Batch], lr: float
) -> None:
    """Bashivan et al. 2021, in the order of their code, with a pass wherever they have one but for the one that logs an
    accuracy, and for those of the penalty where it has no weight."""
    gp = getattr(objective.config, "gp", 0.0)
    decay, momentum = train_config().weight_decay, train_config().momentum
    both = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    psi = torch.optim.SGD(discriminator.parameters(), lr=lr, momentum=momentum)
    theta = torch.optim.SGD(model.encoder.parameters(), lr=5 * lr, momentum=momentum)

    def encode(x: Tensor) -> Tensor:
        z = model.encoder(x)
        return z / z.norm(dim=1, keepdim=True)

    attack = APGD(model, eps=ATTACK.eps, steps=ATTACK.steps, seed=SEED)
    for x, y, index, _ in batches:
        x_adv = attack(x, y, index, epoch=EPOCH)

        both.zero_grad()
        F.cross_entropy(model.classifier(encode(x)), y).backward()
        both.step()

        psi.zero_grad()
        clean, adversarial = discriminator(encode(x), y), discriminator(encode(x_adv), y)
        if isinstance(objective, AFDDCGAN):
            loss = -F.logsigmoid(clean).mean() - F.logsigmoid(-adversarial).mean()
        else:
            loss = adversarial.mean() - clean.mean()
        if gp:
            a = uniform(index, (1,), seed=derive(SEED, "penalty", EPOCH), dtype=x.dtype)
            z, z_adv = encode(x).detach(), encode(x_adv).detach()
            u = (z_adv + (z - z_adv) * a).requires_grad_()
            out = discriminator(u, None)
            (slope,) = torch.autograd.grad(out, u, torch.ones_like(out), create_graph=True)
            loss = loss + gp * ((slope.norm(2, dim=1) - 1) ** 2).mean()
        loss.backward()
        psi.step()

        theta.zero_grad()
        adversarial = discriminator(encode(x_adv), y)
        if isinstance(objective, AFDDCGAN):
            (-F.logsigmoid(adversarial).mean()).backward()
        else:
            (-adversarial.mean()).backward()
        theta.step()


@pytest.mark.parametrize(("kind", "fields"), GAMES, ids=NAMES)
@pytest.mark.parametrize(
    ("dtype", "steps", "error"), [(torch.float32, 1, 1e-6), (torch.float64, 3, 1e-12)], ids=str
)
def test_a_step_is_that_of_algorithm_1(
    kind: type[AFD], fields: dict[str, Any], dtype: torch.dtype, steps: int, error: float
) -> None:
    model = one_way(dtype).train()
    objective = build(kind, model, **fields)
    twin, discriminator = copy.deepcopy(model), copy.deepcopy(objective.discriminator)
    batches = []
    for number in range(steps):
        x, index = torch.rand(8, 1, 8, 8).to(dtype), torch.arange(8) + 8 * number
        batches.append(Batch(*some_right(model, (x, x, index))))
    objective.begin(EPOCH, 0.5)
    engine = Engine(objective, train_config(), torch.device("cpu"))
    for number in batches:
        engine.step(number, lr=0.1)
    algorithm_1(objective, twin, discriminator, batches, 0.1)
    pairs = [(model, twin), (objective.discriminator, discriminator)]
    for mine, theirs in pairs:
        expected = theirs.state_dict()
        for name, value in mine.state_dict().items():
            assert torch.allclose(value, expected[name], rtol=error, atol=error), name
    # Clean images once more where the penalty has its own passes, and the attacked ones too.
    seen = 4 + 2 * bool(fields.get("gp"))
    counters = [v for name, v in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(counter == seen * steps for counter in counters)


@pytest.mark.parametrize("kind", [AFDDCGAN, AFDWGAN])
@pytest.mark.parametrize(("returns", "total"), [("success_only", 30), ("max_loss", 29)])
def test_a_training_step_costs_what_the_mathematics_needs(
    kind: type[AFD], returns: str, total: int, batch: Any
) -> None:
    """Ten attack steps and training are 27F, APGD's first gradient 2F, and the look at the clean images 1F."""
    model = one_way()
    objective = build(kind, model, AttackConfig(eps=0.1, step_size=0.03, steps=10), returns=returns)
    n, look = convolutions(model.encoder), returns == "success_only"
    x, y, index = some_right(model, batch)
    with PassCounter() as step:
        for phase in objective.phases(x, y, index):
            phase.loss.backward(inputs=objective.parameters()[phase.optimizer])
    assert step.forward == n * (11 + look + 3)
    assert step.weight_gradients == n * 2
    # In training the images need no gradient, so the first convolution of each pass computes none.
    assert step.input_gradients == n * 11 + (n - 1) * 2
    assert step.forward + step.weight_gradients + step.input_gradients + 2 == n * total
    assert total == 27 + 2 + look


def test_a_penalty_costs_no_pass_of_the_encoder(batch: Any) -> None:
    counts = []
    for gp in (0.0, 1.0):
        model = one_way()
        objective = build(AFDWGAN, model, gp=gp)
        with PassCounter() as step:
            for phase in objective.phases(*some_right(model, batch)):
                phase.loss.backward(inputs=objective.parameters()[phase.optimizer])
        counts.append((step.forward, step.weight_gradients, step.input_gradients))
    assert counts[0] == counts[1]


def test_images_that_are_not_fooled_come_back_clean_or_at_their_highest_loss(batch: Any) -> None:
    model = one_way()
    x, y, index = some_right(model, batch)
    weak = AttackConfig(eps=1e-4, step_size=1e-4, steps=3)
    only = build(AFDWGAN, model, weak)
    with eval_mode(model), torch.no_grad():
        wrong = model(x).argmax(1) != y
    assert wrong.sum() == 2
    # So small a ball fools nobody: all are returned as they are, those that were wrong before among them.
    assert torch.equal(only.attack(x, y, index, **only.now()), x)
    strong = AttackConfig(eps=0.5, step_size=0.1, steps=5)
    found = build(AFDWGAN, model, strong)
    x_adv = found.attack(x, y, index, **found.now())
    assert torch.equal(x_adv[wrong], x[wrong])
    assert (x_adv != x).flatten(1).any(1)[~wrong].any()
    highest = build(AFDWGAN, model, weak, returns="max_loss")
    x_adv = highest.attack(x, y, index, **highest.now())
    assert (x_adv != x).flatten(1).any(1).all()


def test_the_attack_grows_leaves_the_buffers_and_restores_modes(batch: Any) -> None:
    model = one_way().train()
    model.encoder.convolutions[1].eval()
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.named_buffers()}
    objective = build(
        AFDDCGAN, model, AttackConfig(eps=0.2, step_size=0.05, steps=3, ramp=0.5), returns="max_loss"
    )
    x, y, index = batch
    radii = []
    for progress in (0.0, 0.25, 1.0):
        objective.begin(0, progress)
        moved = (objective.attack(x, y, index, **objective.now()) - x).abs().max().item()
        radii.append(moved)
    assert radii == pytest.approx([0, 0.1, 0.2], abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    list(objective.phases(x, y, index))
    assert [part.training for part in model.modules()] == modes


def test_the_discriminator_leaves_the_devices_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    model = one_way()
    build(AFDWGAN, model)
    assert not seeded
    torch.manual_seed(1)
    assert seeded == [1]


def test_the_discriminator_derives_from_the_seed_alone() -> None:
    model = one_way()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = build(AFDDCGAN, model)
    assert torch.equal(torch.rand(3), expected)  # the global generator was not read
    torch.manual_seed(2)
    for name, value in build(AFDDCGAN, model).discriminator.state_dict().items():
        assert torch.equal(value, first.discriminator.state_dict()[name]), name
    other = AFDDCGAN(model, AFDDCGAN.Config(), ATTACK, seed=SEED + 1)
    assert not torch.equal(other.discriminator.output.bias, first.discriminator.output.bias)
    assert first.networks() == {"discriminator": first.discriminator}
    assert isinstance(first.discriminator, ProjectionDiscriminator)
    assert first.protocol == "afd"


@pytest.mark.parametrize(
    ("backbone", "channels", "size", "width"), [("narrow_resnet", 1, 28, 64), ("resnet18", 3, 32, 512)]
)
def test_images_of_the_papers_sizes(backbone: str, channels: int, size: int, width: int) -> None:
    model = OneWay(backbone, num_classes=10, in_channels=channels, unit_norm=True)
    x, y = torch.rand(2, channels, size, size), torch.tensor([3, 8])
    norms = model.features(x).norm(dim=1)
    assert torch.allclose(norms, torch.ones(2), atol=1e-6)
    objective = build(AFDWGAN, model, AttackConfig(eps=0.03, step_size=0.01, steps=1), gp=1.0)
    assert objective.discriminator.output.in_features == width
    losses = [phase.loss for phase in objective.phases(x, y, torch.arange(2))]
    assert len(losses) == 3
    assert all(loss.isfinite() and loss.shape == () for loss in losses)


@pytest.mark.parametrize(("kind", "fields"), GAMES, ids=NAMES)
def test_bfloat16_autocast_gives_float32_losses(kind: type[AFD], fields: dict[str, Any], batch: Any) -> None:
    model = one_way()
    objective = build(kind, model, **fields)
    run = objective.phases(*some_right(model, batch))
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            phase = next(run)
        assert phase.loss.dtype == torch.float32
        # A penalty in half precision would be hidden by the float32 loss that it is added to.
        assert {value.dtype for value in phase.terms.values()} == {torch.float32}
        phase.loss.backward(inputs=objective.parameters()[phase.optimizer])


def test_what_it_refuses() -> None:
    with pytest.raises(UserError, match="AFDWGAN trains ways r of a OneWay, got a ThreeWay"):
        build(AFDWGAN, ThreeWay("digits_cnn", num_classes=10, in_channels=1))
    for fields, message in (
        ({"discriminator": "fc9"}, "--objective.discriminator is 'fc9', expected one of fc1-pd, fc3, fc3-pd"),
        ({"returns": "last"}, "--objective.returns is 'last', expected 'success_only' or 'max_loss'"),
        ({"encoder_lr": -1.0}, "--objective.encoder-lr is -1.0, expected a finite number from 0"),
        (
            {"discriminator_lr": math.nan},
            "--objective.discriminator-lr is nan, expected a finite number from 0",
        ),
        ({"gp": math.inf}, "--objective.gp is inf, expected a finite number from 0"),
    ):
        with pytest.raises(UserError) as caught:
            AFDWGAN.Config(**fields)
        assert str(caught.value) == message
