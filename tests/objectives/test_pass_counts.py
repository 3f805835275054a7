"""What a training step costs, against what the mathematics needs; F is one encoder's pass over one batch."""

from pathlib import Path

import pytest
import torch
from pass_counter import PassCounter, convolutions

from robustfast.attacks import AttackConfig
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES

TEN_STEPS = AttackConfig(eps=0.1, step_size=0.02, steps=10)

# method: fields, passes of F in the attack (each forward and to the input), without gradient (labels, clean
# probabilities) and in training (forward, to the weights and to the input), and their total in F.
TABLE = {
    "st": ("st", {}, 0, 0, 1, 3),
    "at on adversarial examples alone": ("at", {"half": False}, 10, 0, 1, 23),
    "at half-half": ("at", {}, 10, 0, 2, 26),
    "trades": ("trades", {}, 10, 1, 2, 27),
    "mart": ("mart", {}, 10, 0, 2, 26),
    "alp": ("alp", {}, 10, 0, 2, 26),
    "aat": ("aat", {}, 20, 2, 4, 54),
    "aatpp": ("aatpp", {}, 40, 3, 6, 101),
    "pi": ("pi", {}, 0, 0, 2, 6),
    "pi with the standard way": ("pi", {"train_s": True}, 0, 0, 4, 12),
}

# Objectives of other networks, to the file beside this one that counts their passes.
ELSEWHERE = {
    "match": "test_match.py",
    "afd_dcgan": "test_afd.py",
    "afd_wgan": "test_afd.py",
    "rfd": "test_rfd.py",
    "cdvae": "test_cdvae.py",
    "cdvae_adv": "test_cdvae_adv.py",
    "cdvae_classifier": "test_cdvae_classifier.py",
    "hgd": "test_denoising.py",
    "ape_gan": "test_denoising.py",
}


@pytest.mark.parametrize("method", TABLE)
@pytest.mark.parametrize("backbone", ["digits_cnn", "wide_resnet10_1"])
def test_a_training_step_costs_what_the_mathematics_needs(method, backbone):
    name, fields, attack, without, train, total = TABLE[method]
    assert 2 * attack + without + 3 * train == total
    model = ThreeWay(backbone, num_classes=10, in_channels=1)
    objective = OBJECTIVES[name](model, OBJECTIVES[name].Config(**fields), TEN_STEPS, seed=0)
    n = convolutions(model.encoder_r)
    x, y = torch.rand(4, 1, 8, 8), torch.randint(10, (4,))
    if name == "pi":
        # What `prepare` reads from a file, before training.
        objective.robust, objective.non_robust, objective.labels = x, x.flip(0), y

    inside = PassCounter()
    if objective.attack is not None:
        make = objective.attack

        def counted(*args, **keywords):
            with inside:
                return make(*args, **keywords)

        objective.attack = counted
    with PassCounter() as step:
        (phase,) = objective.phases(x, y, torch.arange(4))
        phase.loss.backward()

    assert inside.forward == inside.input_gradients == n * attack
    assert inside.weight_gradients == 0
    assert step.forward == n * (attack + without + train)
    assert step.weight_gradients == n * train
    # In training the images need no gradient, so the first convolution of each pass computes none.
    assert step.input_gradients == n * attack + (n - 1) * train
    spared = train  # first convolutions
    assert step.forward + step.weight_gradients + step.input_gradients + spared == n * total


def test_every_objective_is_counted():
    assert {name for name, *_ in TABLE.values()} | set(ELSEWHERE) == set(OBJECTIVES)
    here = Path(__file__).parent
    assert all("PassCounter" in (here / file).read_text() for file in ELSEWHERE.values())


def test_the_counter_sees_weight_gradients():
    model = torch.nn.Conv2d(1, 2, 3)
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    with PassCounter() as count:
        model(x).sum().backward()
    assert (count.forward, count.input_gradients, count.weight_gradients) == (1, 1, 1)
    with PassCounter() as count:
        torch.autograd.grad(model(x).sum(), x)
    assert (count.forward, count.input_gradients, count.weight_gradients) == (1, 1, 0)
