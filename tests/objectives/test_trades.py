import math

import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images, softmax

from robustfast.attacks import AttackConfig
from robustfast.errors import UserError
from robustfast.objectives import TRADES
from robustfast.objectives.trades import normal

CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))


def loss_by_hand(factor, beta):
    clean = sum(cross_entropy(factor, pixels, 1) for pixels in CLEAN) / 2
    divergence = 0.0
    for pixels, attacked in zip(CLEAN, ATTACKED, strict=True):
        p, q = softmax(factor, pixels), softmax(factor, attacked)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    return clean + beta * divergence, clean, divergence


def phase_of(factor, beta):
    model = hand_made_model(robust=factor, non_robust=5.0)
    objective = TRADES(model, TRADES.Config(beta=beta), AttackConfig(), seed=0)
    objective.attack = lambda *_, **__: images(*ATTACKED)
    (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
    return model, phase


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_loss_by_hand(beta):
    _, phase = phase_of(3.0, beta)
    loss, clean, divergence = loss_by_hand(3.0, beta)
    assert phase.loss.item() == pytest.approx(loss, rel=1e-12)
    assert phase.terms["clean"].item() == pytest.approx(clean, rel=1e-12)
    assert phase.terms["divergence"].item() == pytest.approx(divergence, rel=1e-12)


def test_gradient_flows_through_both_arguments_of_the_divergence():
    model, phase = phase_of(3.0, 6.0)
    phase.loss.backward()
    step = 1e-5
    numeric = (loss_by_hand(3.0 + step, 6.0)[0] - loss_by_hand(3.0 - step, 6.0)[0]) / (2 * step)
    assert model.encoder_r.factor.grad.item() == pytest.approx(numeric, rel=1e-7)


def test_the_attack_gets_eval_mode_probabilities_and_a_start_beside_x(digits_model, batch):
    x, y, index = batch
    objective = TRADES(digits_model, TRADES.Config(), AttackConfig(), seed=0)
    seen = {}

    def spy(x, target, index, **keywords):
        seen.update(target=target, **keywords)
        return x

    objective.attack = spy
    digits_model.eval()
    expected = digits_model.way("r")(x).softmax(1)
    digits_model.train()
    list(objective.phases(x, y, index))
    assert torch.equal(seen["target"], expected)
    assert not seen["target"].requires_grad
    away = (seen["start"] - x) / 0.001
    assert 0.8 < away.std() < 1.2
    assert away.abs().max() < 6


def test_broken_probabilities_end_in_a_nan_loss_also_where_train_mode_is_finite(digits_model, batch):
    x, y, index = batch
    objective = TRADES(digits_model, TRADES.Config(), AttackConfig(steps=1), seed=0)
    for module in digits_model.encoder_r.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(torch.nan)
    (phase,) = objective.phases(x, y, index)
    assert phase.loss.isnan()
    assert phase.terms["clean"].isfinite()


def test_sigma_0_leaves_the_start_to_the_attack(digits_model, batch):
    objective = TRADES(digits_model, TRADES.Config(sigma=0.0), AttackConfig(), seed=0)
    assert objective.start(batch[0], batch[2]) is None


def test_the_attack_climbs_the_divergence_within_its_ball(digits_model, batch):
    # Float64: a fresh network's predictions hardly move, and float32 rounds such divergences away.
    model, x, index = digits_model.double().eval(), batch[0].double(), batch[2]
    objective = TRADES(model, TRADES.Config(), AttackConfig(eps=0.1, step_size=0.02), seed=0)
    way = model.way("r")
    p = way(x).softmax(1).detach()
    x_adv = objective.attack(x, p, index, start=objective.start(x, index), **objective.now())

    def divergence(images):
        return (p * (p.log() - way(images).log_softmax(1))).sum(1).mean().item()

    noise = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-12
    assert divergence(x_adv) > 3 * divergence(noise)


def test_normal_draws_have_the_moments_of_a_standard_normal():
    draws = normal(torch.empty(64, 3, 32, 32), seed=1, index=torch.arange(64)).double()
    # 196 608 draws: the standard errors of these four are 0.0023, 0.0032, 0.0055 and 0.011.
    assert draws.mean().abs() < 0.01
    assert (draws.var() - 1).abs() < 0.015
    assert (draws**3).mean().abs() < 0.04
    assert ((draws**4).mean() - 3).abs() < 0.12
    assert draws.isfinite().all()
    neighbours = torch.corrcoef(torch.stack([draws.flatten()[:-1], draws.flatten()[1:]]))
    assert neighbours[0, 1].abs() < 0.01


def test_normal_draws_depend_on_seed_and_sample_not_on_the_batch():
    x, index = torch.empty(5, 1, 3, 4), torch.tensor([3, 9, 0, 4, 7])
    draws = normal(x, seed=1, index=index)
    assert torch.equal(normal(x[1:3], seed=1, index=index[1:3]), draws[1:3])
    assert not torch.equal(normal(x, seed=2, index=index), draws)
    assert len(draws.flatten(1).unique(dim=0)) == 5


@pytest.mark.parametrize("field", ["beta", "sigma"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_fields_are_refused_in_one_line(field, value):
    with pytest.raises(UserError, match=rf"--objective.{field} is {value}, expected a finite number from 0"):
        TRADES.Config(**{field: value})
