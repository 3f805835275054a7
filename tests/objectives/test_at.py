import pytest
import torch
from hand_made import cross_entropy, hand_made_model, images

from robustfast.attacks import AttackConfig
from robustfast.objectives import AT

CLEAN, ATTACKED = ((0.1, 0.9), (0.5, 0.3)), ((0.3, 0.7), (0.45, 0.35))


@pytest.mark.parametrize("half", [True, False])
def test_loss_by_hand_is_a_sum_not_a_mean_of_both_halves(half):
    model = hand_made_model(robust=3.0, non_robust=5.0)
    objective = AT(model, AT.Config(half=half), AttackConfig(), seed=0)
    objective.attack = lambda *_, **__: images(*ATTACKED)
    (phase,) = objective.phases(images(*CLEAN), torch.tensor([1, 1]), torch.arange(2))
    adversarial = sum(cross_entropy(3.0, pixels, 1) for pixels in ATTACKED) / 2
    clean = sum(cross_entropy(3.0, pixels, 1) for pixels in CLEAN) / 2
    assert phase.loss.item() == pytest.approx(adversarial + half * clean, rel=1e-14)
    assert phase.terms["adversarial"].item() == pytest.approx(adversarial, rel=1e-14)
    assert ("clean" in phase.terms) == half


def test_the_attack_climbs_the_robust_ways_loss_within_its_ball(digits_model, batch):
    x, y, index = batch
    objective = AT(
        digits_model,
        AT.Config(),
        AttackConfig(eps=0.2, step_size=0.05, steps=10, random_start="none"),
        seed=0,
    )
    digits_model.eval()
    x_adv = objective.attack(x, y, index, **objective.now())
    assert (x_adv - x).abs().max() <= 0.2 + 1e-6
    way = digits_model.way("r")

    def loss(images):
        return torch.nn.functional.cross_entropy(way(images), y).item()

    noise = (x + 0.2 * torch.randn_like(x).sign()).clamp(0, 1)
    assert loss(x_adv) - loss(x) > 3 * abs(loss(noise) - loss(x))
