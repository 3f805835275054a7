"""Foolbox's scripts on our attacks: the same images, triples, criteria and errors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks.compat import foolbox as ours
from robustfast.attacks.compat.foolbox import gradient_descent, minimization

Batch = tuple[Tensor, Tensor]

PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "axis": -3}
EXACT = [
    ("LinfPGD", {"random_start": False}, [0.0, 0.01, 8 / 255]),
    ("LinfPGD", {"random_start": False, "abs_stepsize": 0.004, "steps": 7}, [0.03]),
    ("LinfBasicIterativeAttack", {}, [0.03]),
    ("LinfFastGradientAttack", {}, [0.03]),
    ("MIFGSM", {}, [0.03]),
]
CLOSE = [
    ("L2PGD", {"random_start": False}, [0.1, 0.5]),
    ("L1PGD", {"random_start": False}, [1.0, 12.0]),
    ("L2BasicIterativeAttack", {}, [0.3]),
    ("L1BasicIterativeAttack", {}, [3.0]),
    ("L2FastGradientAttack", {}, [0.3]),
    ("L1FastGradientAttack", {}, [3.0]),
    ("L2MomentumIterativeFastGradientMethod", {"momentum": 0.5}, [0.3]),
    ("L1MomentumIterativeFastGradientMethod", {}, [3.0]),
    ("LinfAdamPGD", {"random_start": False}, [0.03]),
    ("L2AdamPGD", {"random_start": False, "adam_beta1": 0.8}, [0.3]),
    ("L1AdamPGD", {"random_start": False}, [3.0]),
    ("LinfAdamBasicIterativeAttack", {}, [0.03]),
    ("DDNAttack", {"steps": 20}, [0.3, None]),
    ("L2DeepFoolAttack", {}, [0.3, None]),
    ("L2DeepFoolAttack", {"loss": "crossentropy", "candidates": 3}, [None]),
    ("LinfDeepFoolAttack", {}, [0.01, 0.03]),
]


@pytest.fixture
def theirs() -> Any:
    return pytest.importorskip("foolbox", reason="needs: pip install --no-deps foolbox")


@pytest.mark.parametrize(
    ("name", "settings", "epsilons", "targeted"),
    [
        (*case, targeted)
        for case in EXACT + CLOSE
        for targeted in (False, True)
        # Foolbox has these untargeted alone.
        if not (targeted and ("FastGradientAttack" in case[0] or "DeepFool" in case[0]))
    ],
)
def test_attacks_are_theirs(
    make_net: Any,
    batch: Batch,
    theirs: Any,
    name: str,
    settings: dict[str, Any],
    epsilons: list[Any],
    targeted: bool,
) -> None:
    net, (x, y) = make_net().eval(), batch
    results = []
    for library in (theirs, ours):
        model = library.PyTorchModel(net, bounds=(0, 1), preprocessing=PREPROCESSING, device="cpu")
        goal = library.TargetedMisclassification(y) if targeted else library.Misclassification(y)
        results.append(getattr(library.attacks, name)(**settings)(model, x, goal, epsilons=epsilons))
    tolerance = 0 if (name, settings, epsilons) in EXACT else 2e-6
    for expected, found in zip(*results, strict=True):
        if isinstance(expected, list):
            for one, other in zip(expected, found, strict=True):
                assert torch.allclose(other, one, rtol=0, atol=tolerance)
        else:
            assert torch.equal(expected, found)


def test_carlini_and_wagner_finds_what_theirs_finds(net: nn.Module, batch: Batch, theirs: Any) -> None:
    x, y = batch
    settings = {"binary_search_steps": 2, "steps": 30, "initial_const": 100.0, "abort_early": False}
    results = [
        library.attacks.L2CarliniWagnerAttack(**settings)(
            library.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu"), x, y, epsilons=[None, 0.3]
        )
        for library in (theirs, ours)
    ]
    (expected, _, won), (found, _, success) = results
    assert won[0].sum() >= 6
    assert torch.equal(success[0], won[0])
    assert torch.allclose(found[0][won[0]], expected[0][won[0]], rtol=0, atol=1e-4)
    assert torch.equal(found[0][~won[0]], x[~won[0]]), "theirs are black where nothing was found"


@pytest.mark.parametrize("name", ["LinfPGD", "L2PGD", "L1PGD"])
def test_random_starts_are_uniform_in_the_ball(net: nn.Module, batch: Batch, theirs: Any, name: str) -> None:
    x, y = (0.4 + 0.2 * batch[0]).repeat(30, 1, 1, 1), batch[1].repeat(30)
    lengths = []
    for library in (theirs, ours):
        torch.manual_seed(0)
        model = library.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
        attack = getattr(library.attacks, name)(abs_stepsize=0.0, steps=1)
        moved = attack.run(model, x, y, epsilon=0.1) - x
        lengths.append(moved.flatten(1).norm(dim=1).mean())
    assert lengths[1] == pytest.approx(float(lengths[0]), rel=0.03)


def test_one_epsilon_gives_tensors_and_several_lists(net: nn.Module, batch: Batch) -> None:
    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    attack = ours.attacks.LinfPGD()
    raw, clipped, success = attack(model, *batch, epsilons=0.03)
    assert raw.shape == clipped.shape == batch[0].shape
    assert success.shape == (8,)
    assert success.dtype == torch.bool
    raw, clipped, success = attack(model, *batch, epsilons=[0.01, 0.03])
    assert [len(raw), len(clipped)] == [2, 2]
    assert success.shape == (2, 8)
    with pytest.raises(TypeError):
        attack(model, *batch)
    with pytest.raises(NotImplementedError):
        attack(model, *batch, epsilons=[None])
    with pytest.raises(TypeError, match="unexpected keyword"):
        attack(model, *batch, epsilons=0.03, mask=1)


def test_tensors_of_eagerpy_stay_what_they_are(net: nn.Module, batch: Batch) -> None:
    ep = pytest.importorskip("eagerpy")
    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    x, y = ep.astensors(*batch)
    raw, clipped, success = ours.attacks.LinfPGD()(model, x, y, epsilons=[0.01, 0.1])
    for value in (*raw, *clipped, success, model(x)):
        assert isinstance(value, ep.PyTorchTensor)
    assert 0 <= float((1 - success.float32().mean(axis=-1)).raw[0]) <= 1
    assert ours.accuracy(model, x, y) == ours.accuracy(model, *batch)
    assert isinstance(ours.distances.l2(x, raw[0]), ep.PyTorchTensor)
    both = ours.Misclassification(y) & ours.TargetedMisclassification(y)
    assert not both(x, model(x)).raw.any()


def test_repeats_keep_what_succeeded(net: nn.Module, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    x, y = batch[0], net(batch[0]).argmax(1)

    class Scripted(ours.attacks.FixedEpsilonAttack):
        """Run k moves sample k alone, by what it takes."""

        distance = ours.distances.l2
        runs = 0

        def run(self, model: Any, inputs: Tensor, criterion: Any, *, epsilon: float, **kwargs: Any) -> Tensor:
            found = inputs.clone()
            found[self.runs] = won[self.runs]
            found[self.runs + 4] = (found[self.runs + 4] + 1e-6).clamp(0, 1)
            Scripted.runs += 1
            return found

    won = ours.attacks.L2DeepFoolAttack()(model, x, y, epsilons=None)[0]
    far = float(ours.distances.l2(x, won).max()) + 1
    raw, _, success = Scripted().repeat(2).repeat(2)(model, x, y, epsilons=far)
    assert Scripted.runs == 4
    assert success[:4].all()
    assert not success[4:].any()
    assert torch.equal(raw[:4], won[:4])
    assert not torch.equal(raw[4], x[4]), "of failures the first one stays"
    assert torch.equal(raw[5:], x[5:])
    with pytest.raises(ValueError, match="times >= 1"):
        Scripted().repeat(0)


def test_repeats_without_a_limit_keep_the_nearest(net: nn.Module, batch: Batch) -> None:
    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    x, y = batch[0], net(batch[0]).argmax(1)
    attack = ours.attacks.DDNAttack(steps=5)
    once = attack(model, x, y, epsilons=[None])
    again = attack.repeat(3)(model, x, y, epsilons=[None])
    assert torch.equal(once[2], again[2])
    assert torch.equal(once[0][0], again[0][0])


def test_inputs_outside_the_bounds_are_refused(net: nn.Module, batch: Batch) -> None:
    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    for attack in (ours.attacks.LinfPGD(), ours.attacks.DDNAttack()):
        with pytest.raises(AssertionError):
            attack(model, batch[0] * 2, batch[1], epsilons=0.1)
    with pytest.raises(ValueError, match="unsupported criterion"):
        ours.attacks.FGSM()(model, batch[0], ours.TargetedMisclassification(batch[1]), epsilons=0.1)
    both = ours.Misclassification(batch[1]) & ours.Misclassification(batch[1])
    with pytest.raises(ValueError, match="unsupported criterion"):
        ours.attacks.LinfPGD()(model, batch[0], both, epsilons=0.1)
    with pytest.raises(ValueError, match="expected labels to have shape"):
        ours.attacks.LinfPGD()(model, batch[0], batch[1][:3], epsilons=0.1)
    with pytest.raises(ValueError, match="'logits' or 'crossentropy'"):
        ours.attacks.L2DeepFoolAttack(loss="margin")


def test_models_preprocess_as_theirs(make_net: Any, batch: Batch, theirs: Any) -> None:
    net, x = make_net().eval(), batch[0]
    for given in (None, PREPROCESSING, {"flip_axis": -3, **PREPROCESSING}):
        one, other = (
            library.PyTorchModel(net, bounds=(0, 1), preprocessing=given, device="cpu")
            for library in (ours, theirs)
        )
        assert torch.equal(one(x), other(x))
        wide, wide_other = (model.transform_bounds((-1, 1)) for model in (one, other))
        assert tuple(wide.bounds) == (-1, 1)
        assert torch.allclose(wide(2 * x - 1), wide_other(2 * x - 1), atol=1e-6)
        assert torch.allclose(wide(2 * x - 1), one(x), atol=1e-5)
        assert tuple(one.bounds) == (0, 1)
    with pytest.raises(ValueError, match="unknown preprocessing key"):
        ours.PyTorchModel(net, (0, 1), preprocessing={"scale": 1})
    with pytest.raises(ValueError, match="negative"):
        ours.PyTorchModel(net, (0, 1), preprocessing={"mean": [0.5], "axis": 1})
    with pytest.raises(ValueError, match="Module"):
        ours.PyTorchModel(lambda x: x, (0, 1))


def test_other_bounds_are_attacked_in_their_units(make_net: Any, batch: Batch) -> None:
    net, (x, y) = make_net().eval(), batch
    narrow = ours.PyTorchModel(net, bounds=(0, 1), device="cpu")
    wide = narrow.transform_bounds((0, 255))
    attack = ours.attacks.LinfPGD(random_start=False, steps=5)
    one = attack.run(narrow, x, y, epsilon=8 / 255)
    other = attack.run(wide, x * 255, y, epsilon=8.0)
    assert torch.allclose(one, other / 255, atol=1e-5)


def test_train_mode_is_kept_with_a_warning_and_without_a_trace(make_net: Any, batch: Batch) -> None:
    net = make_net().train()
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match="training mode"):
        model = ours.PyTorchModel(net, bounds=(0, 1), device="cpu")
    found = ours.attacks.LinfPGD(random_start=False)(model, *batch, epsilons=0.03)[0]
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    in_eval = ours.attacks.LinfPGD(random_start=False)(
        ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu"), *batch, epsilons=0.03
    )[0]
    assert not torch.equal(found, in_eval)


def test_hooks_of_a_subclass_are_called(net: nn.Module, batch: Batch) -> None:
    x, y = batch

    class Margin(ours.attacks.LinfPGD):
        def get_loss_fn(self, model: Any, labels: Tensor) -> Callable[[Tensor], Tensor]:
            def loss(inputs: Tensor) -> Tensor:
                logits = model(inputs)
                return -logits.gather(1, labels[:, None]).sum()

            return loss

    class Still(ours.attacks.L2PGD):
        def project(self, x: Tensor, x0: Tensor, epsilon: float) -> Tensor:
            return x0

    model = ours.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    one = Margin(random_start=False).run(model, x, y, epsilon=0.1)
    other = ours.attacks.LinfPGD(random_start=False).run(model, x, y, epsilon=0.1)

    def logit(images: Tensor) -> Tensor:
        return net(images).gather(1, y[:, None]).sum()

    assert logit(one) < logit(other), "the logit alone was to fall"
    assert torch.equal(Still().run(model, x, y, epsilon=0.1), x)
    assert Margin().run(model, x, y, epsilon=0.1).shape == x.shape


@pytest.mark.parametrize("name", gradient_descent.__all__ + minimization.__all__)
def test_arguments_are_theirs(theirs: Any, name: str) -> None:
    mine = inspect.signature(getattr(ours.attacks, name)).parameters
    home = theirs.attacks if hasattr(theirs.attacks, name) else theirs.attacks.gradient_descent_base
    yours = inspect.signature(getattr(home, name)).parameters
    # Adam's settings come first here and by keyword alone, as all do there.
    kept = {
        key: value.default for key, value in mine.items() if value.kind is not inspect.Parameter.VAR_KEYWORD
    }
    wanted = {
        key: value.default for key, value in yours.items() if "Adam" not in name or key.startswith("adam")
    }
    assert kept == wanted
    assert all(mine[key].kind == yours[key].kind for key in kept)


def test_what_is_not_served_says_so() -> None:
    for name in ("L1AdamBasicIterativeAttack", "BoundaryAttack"):
        with pytest.raises(AttributeError, match="no counterpart"):
            getattr(ours.attacks, name)
    with pytest.raises(AttributeError, match="images of your own"):
        ours.samples(None)
    with pytest.raises(AttributeError, match="images of your own"):
        ours.utils.samples(None)
    with pytest.raises(AttributeError, match="no counterpart"):
        _ = ours.TensorFlowModel


def script(fb: Any, model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """As Foolbox's readme and examples go, in other words: only the import differs."""
    preprocessing = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "axis": -3}
    fmodel = fb.PyTorchModel(model.eval(), bounds=(0, 1), preprocessing=preprocessing)
    out: dict[str, Any] = {"clean": fb.accuracy(fmodel, images, labels)}
    epsilons = [0.0, 0.002, 0.01, 0.1]
    for attack in (
        fb.attacks.FGSM(),
        fb.attacks.LinfPGD(steps=5),
        fb.attacks.L2BasicIterativeAttack(),
        fb.attacks.L1PGD(steps=5),
        fb.attacks.L2DeepFoolAttack(),
        fb.attacks.DDNAttack(steps=5),
        fb.attacks.L2CarliniWagnerAttack(steps=5),
    ):
        raw, clipped, success = attack(fmodel, images, labels, epsilons=epsilons)
        out[str(type(attack).__name__)] = (raw, clipped, success)
        robust = 1 - success.float().mean(axis=-1)
        out[f"{type(attack).__name__} accuracy"] = robust
        if hasattr(attack, "distance"):
            out[f"{type(attack).__name__} sizes"] = attack.distance(images, clipped[-1])
    targets = fb.criteria.TargetedMisclassification((labels + 1) % 5)
    out["targeted"] = fb.attacks.L2PGD(steps=3).repeat(2)(fmodel, images, targets, epsilons=0.5)
    out["text"] = [repr(fb.attacks.LinfPGD(steps=5)), str(fb.distances.l2)]
    return out


def test_an_unmodified_script_runs(
    net: nn.Module, batch: Batch, theirs: Any, same_kind: Callable[..., None]
) -> None:
    same_kind(script(ours, net, *batch), script(theirs, net, *batch))
