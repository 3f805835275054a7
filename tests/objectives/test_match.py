import math

import pytest
import torch
from hand_made import Scale, cross_entropy, images
from pass_counter import PassCounter, convolutions

from robustfast.attacks import APGD, AttackConfig
from robustfast.errors import UserError
from robustfast.models import OneWay
from robustfast.objectives import Match

CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))
ATTACK = AttackConfig(eps=0.1, steps=3)


def hand_made_one_way(factor, unit_norm=False):
    """Features are the pixels times `factor`, logits the features. Float64."""
    model = OneWay(Scale, num_classes=2, unit_norm=unit_norm)
    model.encoder = Scale(factor)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(2))
        model.classifier.bias.zero_()
    return model.double()


def loss_by_hand(factor, weight):
    clean = sum(cross_entropy(factor, pixels, 1) for pixels in CLEAN) / 2
    distance = sum(factor * math.dist(a, b) for a, b in zip(CLEAN, ATTACKED, strict=True)) / 2
    return clean + weight * distance, clean, distance


def phase_of(model, weight, attacked=ATTACKED):
    objective = Match(model, Match.Config(weight=weight), ATTACK, seed=0)
    objective.attack = lambda *_, **__: images(*attacked)
    (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
    return phase


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
def test_loss_by_hand(weight):
    phase = phase_of(hand_made_one_way(3.0), weight)
    loss, *terms = loss_by_hand(3.0, weight)
    assert phase.loss.item() == pytest.approx(loss, rel=1e-12)
    assert [phase.terms[name].item() for name in ("clean", "distance")] == pytest.approx(terms, rel=1e-12)


def test_features_are_those_of_unit_norm_where_the_network_has_them():
    def unit(pixels):
        return [value / math.hypot(*pixels) for value in pixels]

    phase = phase_of(hand_made_one_way(3.0, unit_norm=True), 1.0)
    distance = sum(math.dist(unit(a), unit(b)) for a, b in zip(CLEAN, ATTACKED, strict=True)) / 2
    assert phase.terms["distance"].item() == pytest.approx(distance, rel=1e-12)


def test_gradient_flows_through_both_features_and_is_0_where_they_are_equal():
    model = hand_made_one_way(3.0)
    phase_of(model, 2.0).loss.backward()
    step = 1e-5
    numeric = (loss_by_hand(3.0 + step, 2.0)[0] - loss_by_hand(3.0 - step, 2.0)[0]) / (2 * step)
    assert model.encoder.factor.grad.item() == pytest.approx(numeric, rel=1e-7)

    model.zero_grad()
    phase_of(model, 2.0, attacked=CLEAN).loss.backward()
    alone = (loss_by_hand(3.0 + step, 0.0)[0] - loss_by_hand(3.0 - step, 0.0)[0]) / (2 * step)
    assert model.encoder.factor.grad.item() == pytest.approx(alone, rel=1e-7)


def test_gradcheck_of_the_whole_loss():
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(factor):
        model = hand_made_one_way(3.0)
        del model.encoder.factor
        model.encoder.factor = factor
        return phase_of(model, 1.0).loss

    assert torch.autograd.gradcheck(loss, factor)


@pytest.mark.parametrize("returns", ["success_only", "max_loss"])
def test_the_attack_is_apgd_at_the_strength_of_the_moment(returns, batch):
    x, _, index = batch
    # In eval mode, so that running statistics do not move between the two attacks.
    model = OneWay("digits_cnn", num_classes=10, in_channels=1).double().eval()
    x = x.double()
    y = model(x).argmax(1)
    strength = AttackConfig(eps=6.0, steps=4, norm="l2", ramp=0.5)
    objective = Match(model, Match.Config(returns=returns), strength, seed=7)
    objective.begin(3, 0.25)
    make, made = objective.attack._run, []

    def spy(*args, **keywords):
        made.append(make(*args, **keywords))
        return made[-1]

    objective.attack._run = spy
    list(objective.phases(x, y, index))
    expected = APGD(model, eps=3.0, norm="l2", steps=4, returns=returns, seed=7)
    (found,) = made
    assert torch.equal(found, expected(x, y, index, epoch=3))
    assert not torch.equal(found, x)
    assert not torch.equal(found, expected(x, y, index, epoch=2))


@pytest.mark.parametrize(("returns", "passes"), [("success_only", 29), ("max_loss", 28)])
def test_passes_of_a_step_with_ten_attack_steps(returns, passes):
    model = OneWay("digits_cnn", num_classes=10, in_channels=1)
    x = torch.rand(4, 1, 8, 8)
    # What the model says of them, so that the attack has images to fool.
    y = model.eval()(x).argmax(1)
    model.train()
    objective = Match(model, Match.Config(returns=returns), AttackConfig(eps=0.1, steps=10), seed=0)
    n = convolutions(model.encoder)
    with PassCounter() as step:
        (phase,) = objective.phases(x, y, torch.arange(4))
        phase.loss.backward()
    assert step.weight_gradients == 2 * n
    spared = 2  # the first convolutions of the two passes in training give the images no gradient
    assert step.forward + step.input_gradients + step.weight_gradients + spared == n * passes


def test_running_statistics_see_clean_and_attacked_images_apart(batch):
    x, y, index = batch
    model = OneWay("digits_cnn", num_classes=10, in_channels=1)
    twin = OneWay("digits_cnn", num_classes=10, in_channels=1)
    twin.load_state_dict(model.state_dict())
    objective = Match(model, Match.Config(), ATTACK, seed=0)
    x_adv = x.flip(0)
    objective.attack = lambda *_, **__: x_adv
    (phase,) = objective.phases(x, y, index)
    for images_ in (x, x_adv):
        twin.features(images_)
    for (name, found), wanted in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(found, wanted), name
    phase.loss.backward()
    assert {id(p) for p in objective.parameters()[phase.optimizer]} == {id(p) for p in model.parameters()}
    assert all(p.grad is not None for p in model.parameters())


def test_another_network_is_refused_in_one_line(digits_model):
    with pytest.raises(
        UserError,
        match=r"Match trains ways r of a OneWay, got a ThreeWay: give --network one_way or unit_norm",
    ):
        Match(digits_model, Match.Config(), ATTACK, seed=0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused_in_one_line(weight):
    with pytest.raises(UserError, match=f"--objective.weight is {weight}, expected a finite number from 0"):
        Match.Config(weight=weight)


def test_unknown_returns_are_refused_in_one_line():
    with pytest.raises(
        UserError, match=r"--objective.returns is 'best', expected 'success_only' or 'max_loss'"
    ):
        Match.Config(returns="best")
