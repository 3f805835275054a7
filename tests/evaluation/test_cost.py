"""Passes counted on paper, and an estimate that grows with the work."""

import dataclasses

import pytest
import torch

from robustfast.data import load
from robustfast.evaluation.attacks import ATTACKS
from robustfast.evaluation.cost import (
    evaluation_passes,
    passes_left,
    preparation_passes,
    seconds_per_pass,
    training_passes,
)
from robustfast.objectives import OBJECTIVES
from robustfast.training.presets import PRESETS


@pytest.mark.parametrize(
    ("method", "passes"), [("st", 3), ("at", 26), ("trades", 27), ("aat", 54), ("aatpp", 101)]
)
def test_training_passes_with_ten_attack_steps(method, passes):
    assert training_passes(PRESETS[f"cifar10-prn18-{method}"]) == passes


@pytest.mark.parametrize(
    ("preset", "settings", "passes"),
    [
        ("digits-afd-nt", {}, 3),
        ("digits-afd-at", {}, 23),
        ("digits-afd-trades", {}, 27),
        ("digits-afd-match", {"returns": "success_only"}, 29),
        ("digits-afd-wgan", {"returns": "success_only"}, 30),
        ("digits-afd-dcgan", {"returns": "max_loss"}, 29),
        ("digits-rfd-mart", {}, 26),
        ("digits-rfd-alp", {}, 26),
        # Its attack has 3, 5, 7 or 9 steps, not --attack.steps.
        ("digits-rfd", {"steps": (3, 5, 7, 9), "domain_statistics": "batch"}, 12 + 13.5),
        ("digits-rfd", {"steps": (3, 5, 7, 9), "domain_statistics": "running"}, 12 + 13.5 + 10),
    ],
)
def test_training_passes_of_other_papers(preset, settings, passes):
    config = PRESETS[preset]
    attack = dataclasses.replace(config.attack, steps=10)
    objective = dataclasses.replace(config.objective, **settings)
    assert training_passes(dataclasses.replace(config, attack=attack, objective=objective)) == passes


def test_training_passes_of_variants():
    preset = PRESETS["cifar10-prn18-aatpp"]
    terms = {("st",): 6, ("st", "as"): 54, ("st", "as", "ar"): 77, ("st", "as", "an"): 78}
    for chosen, passes in terms.items():
        config = dataclasses.replace(preset, objective=dataclasses.replace(preset.objective, terms=chosen))
        assert training_passes(config) == passes
    at = PRESETS["cifar10-prn18-at"]
    assert (
        training_passes(dataclasses.replace(at, objective=dataclasses.replace(at.objective, half=False)))
        == 23
    )


def test_pseudo_inputs_are_made_once():
    pi = OBJECTIVES["pi"].Config(steps=1000)
    config = dataclasses.replace(PRESETS["cifar10-prn18-st"], method="pi", objective=pi)
    assert training_passes(config) == 6
    assert preparation_passes(config) == 4000
    assert preparation_passes(PRESETS["cifar10-prn18-st"]) == 0


def test_evaluation_passes():
    linf = ATTACKS["cifar-linf"]
    # Natural: both encoders. Attacked: 20 gradients of 2F and a prediction, on two encoders for S and one for R and N.
    assert evaluation_passes([linf], "srn") == 2 + 41 * 4
    assert evaluation_passes([linf, linf], "srn") == 2 + 2 * 41 * 4
    assert evaluation_passes([linf], "r") == 1 + 41


def test_what_is_left_shrinks_with_the_epochs_done():
    config = PRESETS["mnist-aatpp"]
    evaluation = evaluation_passes([ATTACKS["mnist-linf"]], "srn")
    options = {"ways": "srn", "evaluation": evaluation, "train": 100, "test": 10}
    whole, half, none = (passes_left(config, epochs=epochs, **options) for epochs in (0, 28, 56))
    assert none == 10 * evaluation
    assert whole - none == pytest.approx(2 * (half - none))
    unchecked = dataclasses.replace(config, validate_every=0)
    assert passes_left(unchecked, epochs=55, **options) - none == 100 * training_passes(config)


def test_measured_pass_is_a_time_and_leaves_the_generator_alone():
    config = dataclasses.replace(PRESETS["digits-aatpp"], device="cpu", batch_size=8)
    state = torch.get_rng_state()
    assert 0 < seconds_per_pass(config, load("digits", "test")) < 10
    assert torch.equal(torch.get_rng_state(), state)
