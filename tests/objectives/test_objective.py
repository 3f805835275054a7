import dataclasses

import pytest
import torch

from robustfast.attacks import AttackConfig
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES, Objective
from robustfast.objectives.objective import accuracies

ATTACK = AttackConfig(eps=0.1, step_size=0.05, steps=2)
# Of the objectives that train a three-way network; those of other networks are tested with their networks.
MAIN_WAYS = {
    "st": "n",
    "at": "r",
    "trades": "r",
    "mart": "r",
    "alp": "r",
    "aat": "srn",
    "aatpp": "srn",
    "pi": "srn",
}
# Of the terms that do not count once.
WEIGHTS = {
    "trades": {"divergence": 6},
    "mart": {"divergence": 5},
    "alp": {"clean": 0.5, "adversarial": 0.5, "pairing": 0.5},
}


def build(name, model, attack=ATTACK, **fields):
    cls = OBJECTIVES[name]
    return cls(model, cls.Config(**fields), attack, seed=0)


def test_registry_holds_the_objectives():
    three_way = {name: cls for name, cls in OBJECTIVES.items() if issubclass(ThreeWay, cls.trains)}
    assert {name: cls.main_ways for name, cls in three_way.items()} == MAIN_WAYS


@pytest.mark.parametrize("name", OBJECTIVES)
def test_config_is_a_frozen_dataclass_with_defaults(name):
    config = OBJECTIVES[name].Config()
    assert dataclasses.is_dataclass(config)
    assert config == OBJECTIVES[name].Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1


@pytest.mark.parametrize("name", MAIN_WAYS)
def test_parameters_are_those_of_the_ways_trained_each_once(name, digits_model):
    (optimizer, parameters), *others = build(name, digits_model).parameters().items()
    assert optimizer == "model"
    assert not others
    encoders = {"n": ["encoder_n"], "r": ["encoder_r"], "srn": ["encoder_r", "encoder_n"]}[MAIN_WAYS[name]]
    expected = [
        parameter
        for prefix, parameter in digits_model.named_parameters()
        if prefix.split(".")[0] in [*encoders, "head"]
    ]
    assert len(parameters) == len(expected)
    assert all(a is b for a, b in zip(parameters, expected, strict=True))


@pytest.mark.parametrize("name", ["st", "at", "trades", "mart", "alp", "aat", "aatpp"])
def test_gradients_reach_exactly_the_parameters_named(name, digits_model, batch):
    objective = build(name, digits_model)
    (phase,) = objective.phases(*batch)
    assert all(parameter.grad is None for parameter in digits_model.parameters())
    phase.loss.backward()
    named = {id(parameter) for parameter in objective.parameters()[phase.optimizer]}
    for label, parameter in digits_model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in named), label


@pytest.mark.parametrize("name", ["st", "at", "trades", "mart", "alp", "aat", "aatpp"])
def test_phase_is_one_scalar_and_its_terms_are_detached(name, digits_model, batch):
    (phase,) = build(name, digits_model).phases(*batch)
    assert phase.loss.shape == ()
    assert phase.loss.requires_grad
    assert phase.terms
    for term in phase.terms.values():
        assert term.shape == ()
        assert not term.requires_grad
    total = sum(WEIGHTS.get(name, {}).get(key, 1) * term for key, term in phase.terms.items())
    torch.testing.assert_close(phase.loss.detach(), total)


ACCURACIES = {
    "st": ["clean"],
    "at": ["adversarial", "clean"],
    "trades": ["clean", "adversarial"],
    "aat": ["st_s", "st_r", "st_n", "as_r", "as_n"],
    "aatpp": ["st_s", "st_r", "st_n", "as_r", "as_n", "ar", "an"],
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_accuracies_are_those_of_the_logits_in_train_mode(name, digits_model, batch):
    y = batch[1]
    digits_model.train()
    given, ways = [], digits_model.ways
    digits_model.ways = lambda x, names: given.append((x, ways(x, names))) or given[-1][1]
    (phase,) = build(name, digits_model).phases(*batch)
    assert list(phase.accuracy) == ACCURACIES[name]
    # Those of training come last, and carry a graph.
    seen = [(x, way, out) for x, logits in given for way, out in logits.items() if out.grad_fn is not None]
    right = {
        name: out.argmax(1).eq(y).double().mean().item()
        for name, (_, _, out) in zip(ACCURACIES[name], seen[-len(ACCURACIES[name]) :], strict=True)
    }
    assert {name: value.item() for name, value in phase.accuracy.items()} == pytest.approx(right, rel=1e-6)
    assert not any(value.requires_grad for value in phase.accuracy.values())


def test_accuracies_count_labels_that_are_right():
    logits = {"a": torch.eye(4)[[0, 1, 2, 3]], "b": torch.eye(4)[[0, 0, 0, 0]].half().requires_grad_()}
    found = accuracies(logits, torch.tensor([0, 1, 2, 0]))
    assert {name: value.item() for name, value in found.items()} == {"a": 0.75, "b": 0.5}
    assert {value.dtype for value in found.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["st", "at", "trades", "mart", "alp", "aat", "aatpp"])
def test_modes_and_gradients_are_left_alone(name, digits_model, batch):
    digits_model.train()
    digits_model.encoder_r.convolutions[1].eval()  # a batch norm its owner froze
    before = [module.training for module in digits_model.modules()]
    for parameter in digits_model.parameters():
        parameter.grad = torch.ones_like(parameter)
    list(build(name, digits_model).phases(*batch))
    assert [module.training for module in digits_model.modules()] == before
    assert all((parameter.grad == 1).all() for parameter in digits_model.parameters())


@pytest.mark.parametrize("name", ["at", "trades", "mart", "alp", "aat", "aatpp"])
def test_draws_are_a_function_of_seed_epoch_and_index(name, digits_model, batch):
    x, y, index = batch
    digits_model.eval()  # so that running statistics do not move between the calls

    def made(seed=0, epoch=0, index=index):
        """Every adversarial image of one batch, in one tensor."""
        cls = OBJECTIVES[name]
        objective = cls(digits_model, cls.Config(), ATTACK, seed=seed)
        attack, images = objective.attack, []

        def spy(*args, **keywords):
            found = attack(*args, **keywords)
            images.extend(found.values() if isinstance(found, dict) else [found])
            return found

        objective.attack = spy
        objective.begin(epoch, 0.0)
        list(objective.phases(x, y, index))
        return torch.cat(images)

    state = torch.get_rng_state()
    first = made()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made(), first)
    assert not torch.equal(made(seed=1), first)
    assert not torch.equal(made(epoch=1), first)
    assert not torch.equal(made(index=index + 1), first)


@pytest.mark.parametrize("name", ["at", "trades", "mart", "alp", "aat", "aatpp"])
def test_begin_drives_the_growth_of_the_attack(name, digits_model, batch):
    objective = build(name, digits_model, dataclasses.replace(ATTACK, ramp=0.5))
    seen = []
    attack = objective.attack

    def spy(*args, **keywords):
        seen.append({key: keywords[key] for key in ("epoch", "eps", "step_size")})
        return attack(*args, **keywords)

    objective.attack = spy
    for epoch, progress in ((0, 0.0), (1, 0.25), (2, 0.5), (3, 0.9)):
        objective.begin(epoch, progress)
        list(objective.phases(*batch))
    assert seen == [
        {"epoch": 0, "eps": 0.0, "step_size": 0.0},
        {"epoch": 1, "eps": 0.05, "step_size": 0.025},
        {"epoch": 2, "eps": 0.1, "step_size": 0.05},
        {"epoch": 3, "eps": 0.1, "step_size": 0.05},
    ]


@pytest.mark.parametrize("name", ["st", "at", "trades", "mart", "alp", "aat", "aatpp"])
def test_bfloat16_autocast_gives_a_float32_loss_and_all_gradients(name, digits_model, batch):
    # Weights that autocast caches under no_grad, for the labels, must not cut the gradient of the training pass.
    objective = build(name, digits_model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (phase,) = objective.phases(*batch)
    assert phase.loss.dtype == torch.float32
    phase.loss.backward()
    for parameter in objective.parameters()["model"]:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_the_base_class_has_no_phases(digits_model, batch):
    objective = Objective.__new__(Objective)
    with pytest.raises(NotImplementedError):
        objective.phases(*batch)
