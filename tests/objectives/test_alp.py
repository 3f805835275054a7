import math

import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images

from robustfast.attacks import AttackConfig
from robustfast.errors import UserError
from robustfast.objectives import ALP

CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))


def loss_by_hand(factor, weight, share):
    clean = sum(cross_entropy(factor, pixels, 1) for pixels in CLEAN) / 2
    adversarial = sum(cross_entropy(factor, pixels, 1) for pixels in ATTACKED) / 2
    pairs = zip(sum(CLEAN, ()), sum(ATTACKED, ()), strict=True)
    pairing = sum((factor * (a - b)) ** 2 for a, b in pairs) / 4  # two images of two logits
    return share * clean + (1 - share) * adversarial + weight * pairing, clean, adversarial, pairing


def phase_of(factor, **fields):
    model = hand_made_model(robust=factor, non_robust=5.0)
    objective = ALP(model, ALP.Config(**fields), AttackConfig(), seed=0)
    objective.attack = lambda *_, **__: images(*ATTACKED)
    (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
    return model, phase


@pytest.mark.parametrize(("weight", "share"), [(0.5, 0.5), (0.0, 0.5), (2.0, 0.0), (1.0, 1.0)])
def test_loss_by_hand(weight, share):
    _, phase = phase_of(3.0, weight=weight, clean=share)
    loss, *terms = loss_by_hand(3.0, weight, share)
    assert phase.loss.item() == pytest.approx(loss, rel=1e-12)
    found = [phase.terms[name].item() for name in ("clean", "adversarial", "pairing")]
    assert found == pytest.approx(terms, rel=1e-12)


def test_gradient_flows_through_both_logits():
    model, phase = phase_of(3.0, weight=2.0)
    phase.loss.backward()
    step = 1e-5
    numeric = (loss_by_hand(3.0 + step, 2.0, 0.5)[0] - loss_by_hand(3.0 - step, 2.0, 0.5)[0]) / (2 * step)
    assert model.encoder_r.factor.grad.item() == pytest.approx(numeric, rel=1e-7)


def test_gradcheck_of_the_whole_loss():
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(factor):
        objective = ALP(hand_made_model(3.0, 5.0), ALP.Config(), AttackConfig(), seed=0)
        objective.attack = lambda *_, **__: images(*ATTACKED)
        del objective.model.encoder_r.factor
        objective.model.encoder_r.factor = factor
        (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
        return phase.loss

    assert torch.autograd.gradcheck(loss, factor)


def test_saturated_logits_stay_finite():
    model, phase = phase_of(1e4)
    phase.loss.backward()
    assert phase.loss.isfinite()
    assert model.encoder_r.factor.grad.isfinite()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        *(("weight", value, "a finite number from 0") for value in (-1.0, math.nan, math.inf)),
        *(("clean", value, r"a share in \[0, 1\]") for value in (-0.1, 1.1, math.nan)),
    ],
)
def test_bad_fields_are_refused_in_one_line(field, value, expected):
    with pytest.raises(UserError, match=rf"--objective.{field} is {value}, expected {expected}"):
        ALP.Config(**{field: value})
