import math

import pytest
import torch
from hand_made import hand_made_model, images, softmax

from robustfast.attacks import AttackConfig
from robustfast.errors import UserError
from robustfast.objectives import MART
from robustfast.objectives.mart import boosted_cross_entropy, weighted_divergence

CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))


def loss_by_hand(factor, weight):
    adversarial = divergence = 0.0
    for pixels, attacked in zip(CLEAN, ATTACKED, strict=True):
        p, q = softmax(factor, pixels), softmax(factor, attacked)
        adversarial += (-math.log(q[1]) - math.log(1 - q[0])) / 2
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * (1 - p[1]) / 2
    return adversarial + weight * divergence, adversarial, divergence


def phase_of(factor, weight):
    model = hand_made_model(robust=factor, non_robust=5.0)
    objective = MART(model, MART.Config(weight=weight), AttackConfig(), seed=0)
    objective.attack = lambda *_, **__: images(*ATTACKED)
    (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
    return model, phase


@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_loss_by_hand(weight):
    _, phase = phase_of(3.0, weight)
    loss, adversarial, divergence = loss_by_hand(3.0, weight)
    assert phase.loss.item() == pytest.approx(loss, rel=1e-12)
    assert phase.terms["adversarial"].item() == pytest.approx(adversarial, rel=1e-12)
    assert phase.terms["divergence"].item() == pytest.approx(divergence, rel=1e-12)


def test_gradient_flows_through_every_factor():
    model, phase = phase_of(3.0, 5.0)
    phase.loss.backward()
    step = 1e-5
    numeric = (loss_by_hand(3.0 + step, 5.0)[0] - loss_by_hand(3.0 - step, 5.0)[0]) / (2 * step)
    assert model.encoder_r.factor.grad.item() == pytest.approx(numeric, rel=1e-7)


def test_the_rival_is_the_likeliest_class_beside_the_label():
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]], dtype=torch.float64).log()
    # Probabilities are eighths. Label 0 is the likeliest itself: its rival is 2. Label 1's rival is 0.
    expected = [-math.log(4 / 8) - math.log(1 - 3 / 8), -math.log(1 / 8) - math.log(1 - 4 / 8)]
    assert boosted_cross_entropy(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_in_float64():
    generator = torch.Generator().manual_seed(0)
    clean, adv = (torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([0, 3, 4, 1])
    clean.requires_grad_()
    adv.requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: boosted_cross_entropy(logits, y), adv)
    assert torch.autograd.gradcheck(lambda a, b: weighted_divergence(a, b, y), (clean, adv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label", [0, 1])
def test_saturated_logits_give_what_float64_would(label, dtype):
    clean = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    adv = torch.tensor([[-500.0, 500.0, 0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([label])
    boosted, weighted = boosted_cross_entropy(adv, y), weighted_divergence(clean, adv, y)
    # p = (1, 0, 0), q = (0, 1, 0): the rival of label 0 has all but e^-500, that of label 1 has e^-500.
    assert boosted.item() == pytest.approx([1000 + 500, 0][label])
    assert weighted.item() == pytest.approx([0, 1000][label])
    (boosted + weighted).sum().backward()
    assert clean.grad.isfinite().all()
    assert adv.grad.isfinite().all()
    # A certain mistake still has its whole slope, that of -log p_y and of -log(1 - p_k).
    if label == 0:
        assert adv.grad.tolist() == [[-1, 2, -1]]


def test_an_image_that_is_certain_of_its_label_feels_no_divergence():
    logits, adv = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    kept = weighted_divergence(logits.double(), adv.double(), torch.tensor([0])).item()
    # 1 - p_y is e^-60, far below the last digit of 1, and the divergence log(1 + e).
    assert kept == pytest.approx(math.exp(-60) * math.log(1 + math.e), rel=1e-12)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_bad_weights_are_refused_in_one_line(weight):
    with pytest.raises(UserError, match=f"--objective.weight is {weight}, expected a finite number from 0"):
        MART.Config(weight=weight)
