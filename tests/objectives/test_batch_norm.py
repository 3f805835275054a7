"""Which batches the batch norms see, and when: the papers' networks never mix clean and attacked statistics."""

import copy

import pytest
import torch

from robustfast.attacks import AttackConfig
from robustfast.objectives import OBJECTIVES

ATTACK = AttackConfig(eps=0.1, step_size=0.05, steps=2)


def build(name, model, **fields):
    return OBJECTIVES[name](model, OBJECTIVES[name].Config(**fields), ATTACK, seed=0)


def buffers(model):
    return {name: value.clone() for name, value in model.named_buffers()}


# (objective, its fields, the batches each encoder sees in train mode, in order)
SEEN = [
    ("st", {}, {"r": [], "n": ["x"]}),
    ("at", {}, {"r": ["adv", "x"], "n": []}),
    ("at", {"half": False}, {"r": ["adv"], "n": []}),
    ("trades", {}, {"r": ["x", "adv"], "n": []}),
    ("mart", {}, {"r": ["x", "adv"], "n": []}),
    ("alp", {}, {"r": ["x", "adv"], "n": []}),
    ("aat", {"terms": ("st",)}, {"r": ["x"], "n": ["x"]}),
    ("aat", {}, {"r": ["x", "s"], "n": ["x", "s"]}),
    ("aat", {"terms": ("st", "ar")}, {"r": ["x", "r"], "n": ["x"]}),
    ("aat", {"terms": ("st", "an")}, {"r": ["x"], "n": ["x", "n"]}),
    ("aatpp", {}, {"r": ["x", "s", "r"], "n": ["x", "s", "n"]}),
]


@pytest.mark.parametrize(("name", "fields", "seen"), SEEN)
def test_running_statistics_see_exactly_the_separate_passes(name, fields, seen, digits_model, batch):
    objective = build(name, digits_model, **fields)
    made = {"x": batch[0]}
    if objective.attack is not None:
        make = objective.attack

        def spy(*args, **keywords):
            found = make(*args, **keywords)
            made.update(found if isinstance(found, dict) else {"adv": found})
            return found

        objective.attack = spy
    twin = copy.deepcopy(digits_model).train()
    list(objective.phases(*batch))
    for encoder, batches in seen.items():
        for label in batches:
            twin.encode(made[label], encoder)
    expected = buffers(twin)
    for label, value in buffers(digits_model).items():
        assert torch.equal(value, expected[label]), label


@pytest.mark.parametrize("name", ["at", "trades", "mart", "alp", "aatpp"])
def test_attack_and_labels_leave_the_buffers_bit_identical(name, digits_model, batch):
    objective = build(name, digits_model)
    before = buffers(digits_model)
    checked = []

    def unmoved(function):
        def run(*args, **keywords):
            result = function(*args, **keywords)
            after = buffers(digits_model)
            assert all(torch.equal(after[label], before[label]) for label in before)
            checked.append(function)
            return result

        return run

    objective.attack = unmoved(objective.attack)
    if name == "aatpp":
        objective.labels = unmoved(objective.labels)
    list(objective.phases(*batch))
    assert len(checked) == (2 if name == "aatpp" else 1)
    assert any(not torch.equal(value, before[label]) for label, value in digits_model.named_buffers())
