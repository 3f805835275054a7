"""The AutoAttack package's scripts on our attacks: whole data sets, logs, states, and its attacks by themselves."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfast.attacks.autoattack_versions import for_classes
from robustfast.attacks.compat import autoattack
from robustfast.attacks.compat.autoattack import AutoAttack, EvaluationState

QUICK = ["apgd-ce", "apgd-t", "square"]


@pytest.fixture
def data(make_net: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A float64 network, images that it is right about but for one, and labels."""
    net = make_net(torch.float64).eval()
    x = torch.rand(14, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = net(x).argmax(1)
    y[3] = (y[3] + 1) % 5
    return net, x, y


def quick(net: Any, names: list[str] = QUICK, **settings: Any) -> AutoAttack:
    """AutoAttack with few steps."""
    given = {"eps": 0.06, "seed": 0, "device": "cpu", "version": "custom", "attacks_to_run": list(names)}
    adversary = AutoAttack(net, **{**given, **settings})
    adversary.apgd.n_restarts = 1
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 10
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 4
    adversary.square.n_queries = 20
    return adversary


def test_results_do_not_depend_on_the_batch_size(data: Any) -> None:
    net, x, y = data
    one, labels = quick(net).run_standard_evaluation(x, y, bs=250, return_labels=True)
    other = quick(net).run_standard_evaluation(x, y, bs=3)
    assert torch.equal(one, other)
    assert torch.equal(labels, net(one).argmax(1))
    fooled = labels != y
    assert 3 < int(fooled.sum()) < 14
    assert torch.equal(one[~fooled], x[~fooled]), "what stands comes back as it is"
    assert torch.equal(one[3], x[3]), "what was wrong from the start comes back as it is"
    assert (one - x).abs().max() <= 0.06 + 1e-12


def test_seeds_decide(data: Any) -> None:
    net, x, y = data
    state = torch.get_rng_state()
    one, same, other = (
        quick(net, ["apgd-ce"], seed=seed).run_standard_evaluation(x, y) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    drawn = [quick(net, ["apgd-ce"], seed=None).run_standard_evaluation(x, y) for _ in range(2)]
    assert not torch.equal(*drawn)


def test_versions_are_the_packages(data: Any) -> None:
    net = data[0]
    standard = AutoAttack(net, device="cpu", verbose=False)
    assert standard.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert standard.epsilon == 0.3
    assert (standard.apgd.n_restarts, standard.apgd.n_iter, standard.apgd_targeted.n_target_classes) == (
        1,
        100,
        9,
    )
    assert (standard.fab.n_restarts, standard.square.n_queries, standard.square.rescale_schedule) == (
        1,
        5000,
        False,
    )
    l1 = AutoAttack(net, norm="L1", eps=12.0, device="cpu", verbose=False)
    assert (l1.apgd.n_restarts, l1.apgd_targeted.n_target_classes, l1.apgd.use_largereps) == (5, 5, True)
    plus = AutoAttack(net, version="plus", device="cpu", verbose=False)
    assert plus.attacks_to_run == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert (plus.apgd.n_restarts, plus.fab.n_restarts) == (5, 5)
    rand = AutoAttack(net, version="rand", device="cpu", verbose=False)
    assert rand.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    assert rand.apgd.eot_iter == 20
    custom = AutoAttack(net, version="custom", device="cpu", verbose=False)
    assert custom.attacks_to_run == []
    with pytest.raises(ValueError, match="attacks_to_run will be overridden"):
        AutoAttack(net, attacks_to_run=["square"])
    with pytest.raises(AssertionError, match="Linf"):
        AutoAttack(net, norm="linf")
    with pytest.raises(ValueError, match="TensorFlow"):
        AutoAttack(net, is_tf_model=True)
    with pytest.raises(ValueError, match="version is 'foo', expected one of standard, plus, rand, custom"):
        AutoAttack(net, version="foo", device="cpu")
    with pytest.raises(ValueError, match=r"\['pgd'\], expected a list of apgd-ce, .*, square"):
        quick(net, ["pgd"])


def test_a_machine_without_cuda_says_what_to_pass(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="pass device='cpu'"):
        AutoAttack(data[0])


def test_what_is_no_attack_is_refused_before_the_log(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    net, x, y = data
    adversary = quick(net)
    for names in ([], ["square", "pgd"]):
        adversary.attacks_to_run = names
        with pytest.raises(ValueError, match="attacks_to_run is"):
            adversary.run_standard_evaluation(x, y)
    assert not capsys.readouterr().out


def test_the_log_tells_of_each_attack(data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, x, y = data
    quick(net, log_path=tmp_path / "log.txt").run_standard_evaluation(x, y, bs=5)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0] == "using custom version including apgd-ce, apgd-t, square."
    assert lines[1] == "initial accuracy: 92.86%"
    assert any(line.startswith("apgd-ce - 1/3 - ") for line in lines)
    assert any(line.startswith("robust accuracy after APGD-T: ") for line in lines)
    assert lines[-2].startswith("max Linf perturbation: 0.06000, nan in tensor: 0")
    assert lines[-1].startswith("robust accuracy: ")
    assert set(lines) <= set(capsys.readouterr().out.splitlines())
    quick(net, verbose=False, log_path=tmp_path / "quiet.txt").run_standard_evaluation(x, y)
    assert not (tmp_path / "quiet.txt").exists()


def test_the_log_warns(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    net, x, y = data
    adversary = quick(net, verbose=False)
    adversary.apgd_targeted.n_target_classes = 9
    adversary.run_standard_evaluation(x[:2], y[:2])
    assert "more target classes (9)" in capsys.readouterr().out
    quick(lambda z: net(z).softmax(1), ["square"], verbose=False).run_standard_evaluation(x[:2], y[:2])
    assert "probability distribution" in capsys.readouterr().out
    quick(lambda z: net(z) + torch.rand(5), ["square"], verbose=False).run_standard_evaluation(x[:2], y[:2])
    assert "randomized defense" in capsys.readouterr().out


def test_individual_runs_attack_all_samples(data: Any) -> None:
    net, x, y = data
    adversary = quick(net)
    found = adversary.run_standard_evaluation_individual(x, y, bs=5, return_labels=True)
    assert list(found) == QUICK
    assert adversary.attacks_to_run == QUICK
    assert adversary.verbose
    for name, (x_adv, y_adv) in found.items():
        assert torch.equal(y_adv, net(x_adv).argmax(1))
        alone = quick(net, [name]).run_standard_evaluation(x, y)
        assert torch.equal(x_adv, alone)
    only = adversary.run_standard_evaluation_individual(x, y)
    assert all(torch.equal(only[name], found[name][0]) for name in QUICK)
    assert 0 < adversary.clean_accuracy(found["apgd-ce"][0], y) < adversary.clean_accuracy(x, y) == 13 / 14


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_an_interrupted_evaluation_resumes(data: Any, tmp_path: Path, stop_at: int) -> None:
    net, x, y = data
    path = tmp_path / "state.json"
    whole = quick(net).run_standard_evaluation(x, y, bs=4)
    adversary = quick(net)
    real, calls = adversary._attack, []

    def failing(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    adversary._attack = failing
    with pytest.raises(KeyboardInterrupt):
        adversary.run_standard_evaluation(x, y, bs=4, state_path=path)
    before = EvaluationState.from_disk(path)
    found = quick(net).run_standard_evaluation(x, y, bs=4, state_path=path)
    state = EvaluationState.from_disk(path)
    assert state.run_attacks == QUICK
    assert state.clean_accuracy == 13 / 14
    stands = net(whole).argmax(1) == y
    assert torch.equal(state.robust_flags, stands)
    assert state.robust_accuracy == pytest.approx(stands.double().mean().item())
    # What was won before the interruption comes back unattacked; the rest as without one.
    left = before.robust_flags
    assert torch.equal(found[left], whole[left])
    assert torch.equal(found[~left], x[~left])


def test_a_wrong_state_is_refused(data: Any, tmp_path: Path) -> None:
    net, x, y = data
    path = tmp_path / "state.json"
    quick(net, ["square"]).run_standard_evaluation(x, y, state_path=str(path))
    with pytest.raises(ValueError, match="different set of attacks"):
        quick(net).run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(ValueError, match="14 samples, 5 were given"):
        quick(net, ["square"]).run_standard_evaluation(x[:5], y[:5], state_path=path)
    path.write_text(json.dumps({"half": 1}))
    with pytest.raises(ValueError, match="no state of an evaluation"):
        quick(net, ["square"]).run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(ValueError, match="not set yet"):
        _ = EvaluationState([]).robust_accuracy


def test_a_state_of_another_evaluation_is_refused(data: Any, tmp_path: Path) -> None:
    net, x, y = data
    path = tmp_path / "state.json"

    def run(model: Any = net, images: Tensor = x, labels: Tensor = y, **settings: Any) -> None:
        quick(model, ["square"], **settings).run_standard_evaluation(images, labels, state_path=path)

    run()
    run()
    other = copy.deepcopy(net)
    with torch.no_grad():
        next(other.parameters())[0] += 1e-6
    refusals: list[tuple[str, Any]] = [
        (r"differs in eps \(0.06, now 0.0\); delete it", lambda: run(eps=0.0)),
        (r"norm \('Linf', now 'L2'\), eps \(0.06, now 0.5\)", lambda: run(norm="L2", eps=0.5)),
        (r"seed \(0, now None\)", lambda: run(seed=None)),
        ("differs in images; delete", lambda: run(images=x.flip(-1))),
        ("differs in labels; delete", lambda: run(labels=y.flip(0))),
        ("differs in weights; delete", lambda: run(other)),
    ]

    def set_otherwise() -> None:
        adversary = quick(net, ["square"])
        adversary.square.n_queries = 30
        adversary.fab.n_iter = 7  # which does not run
        adversary.run_standard_evaluation(x, y, state_path=path)

    refusals.append((r"differs in square.n_queries \(20, now 30\); delete", set_otherwise))
    before = path.read_text()
    for words, call in refusals:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.read_text() == before
    path.unlink()
    adversary = quick(net, ["square"])
    adversary.version = "standard"
    adversary.run_standard_evaluation(x, y, state_path=path)
    with pytest.raises(ValueError, match=r"version \('standard', now 'custom'\)"):
        run()


def test_a_model_without_weights_is_known_by_its_logits(data: Any, tmp_path: Path) -> None:
    net, x, y = data
    path = tmp_path / "state.json"

    def run(model: Any) -> None:
        quick(model, ["square"], verbose=False).run_standard_evaluation(x, y, state_path=path)

    run(lambda z: net(z))
    run(lambda z: net(z) * (1 + 1e-6))  # as another device rounds
    with pytest.raises(ValueError, match="differs in logits; delete"):
        run(lambda z: net(z).flip(1))
    path.unlink()
    run(lambda z: net(z) + 0.01 * torch.rand(5))
    run(lambda z: net(z) + 0.01 * torch.rand(5))


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_climb_the_margin(classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()
    x = torch.rand(12, 3, 8, 8)
    y = net(x).argmax(1)
    names = ["apgd-dlr", "apgd-t"]
    reasons = [why for name in names if (why := for_classes(name, {}, classes)[1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = quick(net, names, eps=0.1).run_standard_evaluation_individual(x, y, bs=5)
    out = capsys.readouterr().out
    assert len(reasons) == 4 - classes
    for name, x_adv in found.items():
        assert (net(x_adv).argmax(1) != y).all(), name
        why = for_classes(name, {}, classes)[1]
        assert not why or out.count(f"Warning: {why}") == 1
    for part in (
        autoattack.APGDAttack_targeted(net, n_iter=5, eps=0.1),
        autoattack.APGDAttack(net, n_iter=5, eps=0.1, loss="dlr"),
    ):
        warned = classes == 2 or isinstance(part, autoattack.APGDAttack_targeted)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x_adv = [part.perturb(x, y) for _ in range(2)][1]
        assert len(caught) == warned
        assert (net(x_adv).argmax(1) != y).all()


def test_won_samples_leave_an_evaluation(data: Any) -> None:
    net, x, y = data
    rows = []
    net.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    names = ["apgd-ce", "apgd-t", "fab-t"]

    def images(whole: bool) -> tuple[int, Tensor]:
        adversary = quick(net, names, verbose=False, eps=0.09)
        adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = 30
        if whole:
            for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
                part.perturb = functools.partial(to_the_end, part, part.perturb)
        rows.clear()
        x_adv = adversary.run_standard_evaluation(x, y)
        return sum(rows), x_adv

    def to_the_end(part: Any, real: Any, *arguments: Any, **keywords: Any) -> Tensor:
        assert part.stops_early
        part.stops_early = False
        return real(*arguments, **keywords)

    fewer, early = images(whole=False)
    more, late = images(whole=True)
    assert fewer < 0.8 * more
    assert torch.equal(net(early).argmax(1) == y, net(late).argmax(1) == y)
    part = autoattack.APGDAttack(net, n_iter=30, eps=0.06)
    rows.clear()
    part.perturb(x, y, best_loss=True)
    assert min(rows) == len(x), "best_loss goes to the end with all"
    adversary = quick(net, ["apgd-ce"], verbose=False)
    adversary.run_standard_evaluation(x, y)
    assert adversary.apgd._built.last.early_stop
    adversary.apgd.perturb(x, y)
    assert not adversary.apgd._built.last.early_stop
    adversary.apgd.eot_iter = 2
    adversary.attacks_to_run = ["apgd-ce", "fab"]
    adversary.run_standard_evaluation(x, y)
    assert not adversary.apgd._built.last.early_stop
    assert not adversary.fab._built.last.early_stop


def test_larger_radii_come_when_asked_for(data: Any) -> None:
    net, x, y = data
    right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    seen: list[Tensor] = []
    net.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    for kind in (autoattack.APGDAttack, autoattack.APGDAttack_targeted):
        reach = {}
        for large in (False, True):
            part = kind(net, n_iter=10, norm="L1", eps=1.5, use_largereps=large)
            seen.clear()
            found = part.perturb(x, y)
            assert (found - x).abs().flatten(1).sum(1).max() <= 1.5 + 1e-9
            reach[large] = max(
                (images - x).abs().flatten(1).sum(1).max().item() for images in seen if len(images) == len(x)
            )
        assert reach[False] == pytest.approx(1.5, rel=1e-6)
        assert reach[True] > 2 * 1.5
    part = autoattack.APGDAttack(net, n_iter=10, norm="L1", eps=1.5, use_largereps=True)
    seen.clear()
    part.perturb(x, y, best_loss=True)
    assert max((images - x).abs().flatten(1).sum(1).max() for images in seen) <= 1.5 + 1e-9
    with pytest.raises(ValueError, match="exists under L1 and not under Linf"):
        autoattack.APGDAttack(net, eps=0.1, use_largereps=True).perturb(x, y)


def test_all_six_attacks_run(data: Any) -> None:
    net, x, y = data
    names = ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    found = quick(net, names, verbose=False).run_standard_evaluation_individual(x[:4], y[:4])
    assert list(found) == names
    for x_adv in found.values():
        assert (x_adv - x[:4]).abs().max() <= 0.06 + 1e-12


def test_attacks_by_themselves(data: Any) -> None:
    net, x, y = data
    apgd = autoattack.APGDAttack(net, n_iter=10, norm="L2", eps=0.6, n_restarts=2, loss="dlr")
    for adv in (apgd.perturb(x, y), apgd.perturb(x)):
        assert (adv - x).flatten(1).norm(dim=1).max() <= 0.6 + 1e-9
    assert torch.equal(apgd.perturb(x, y), apgd.perturb(x, y)), "the seed alone makes the draws"
    best = apgd.perturb(x, y, best_loss=True)
    stands = net(apgd.perturb(x, y)).argmax(1) == y
    assert not torch.equal(best[stands], x[stands]), "the highest loss, not only what fools"
    apgd.n_restarts = 1
    start = (x + 0.01).clamp(0, 1)
    assert apgd.perturb(x, y, x_init=start).shape == x.shape
    targeted = autoattack.APGDAttack_targeted(net, n_iter=5, eps=0.06, n_target_classes=4)
    assert (targeted.perturb(x, y) - x).abs().max() <= 0.06 + 1e-12
    square = autoattack.SquareAttack(net, n_queries=10, eps=0.06)
    assert (square.perturb(x, y) - x).abs().max() <= 0.06 + 1e-12
    square.targeted = True
    assert square.perturb(x, (y + 1) % 5).shape == square.perturb(x).shape == x.shape
    fab = autoattack.FABAttack_PT(net, n_iter=5, eps=0.06, targeted=True, n_target_classes=4)
    assert (fab.perturb(x, y) - x).abs().max() <= 0.06 + 1e-12
    assert autoattack.FABAttack_PT(net).eps == 0.3
    with pytest.raises(AssertionError):
        autoattack.APGDAttack(net, loss="margin", eps=0.1).perturb(x, y)
    with pytest.raises(ValueError, match="topk"):
        autoattack.APGDAttack(net, topk=0.1)


def test_the_model_is_left_as_it_is(make_net: Any, data: Any) -> None:
    net, (_, x, y) = make_net(torch.float64).train(), data
    before = copy.deepcopy(net.state_dict())
    quick(net, ["apgd-ce"], verbose=False).run_standard_evaluation(x, y)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_unmodified_script_runs(make_net: Any, tmp_path: Path) -> None:
    """As the package's example evaluation goes, in other words: only the import differs."""
    net = make_net().eval()
    x_test = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y_test = net(x_test).argmax(1)
    adversary = AutoAttack(
        net, norm="Linf", eps=8 / 255, log_path=tmp_path / "log.txt", version="standard", device="cpu"
    )
    adversary.attacks_to_run = ["apgd-ce", "fab"]
    adversary.apgd.n_restarts = 2
    adversary.fab.n_restarts = 2
    adversary.apgd.n_iter = adversary.fab.n_iter = 5
    with torch.no_grad():
        adv_complete = adversary.run_standard_evaluation(x_test, y_test, bs=4, state_path=tmp_path / "state")
        torch.save({"adv_complete": adv_complete}, tmp_path / "adv.pth")
        by_attack = adversary.run_standard_evaluation_individual(x_test, y_test, bs=4)
    assert adv_complete.shape == x_test.shape
    assert adv_complete.dtype == x_test.dtype
    assert not adv_complete.requires_grad
    assert set(by_attack) == {"apgd-ce", "fab"}
