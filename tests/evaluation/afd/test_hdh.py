"""The distance of the domains: on logits made by hand, and of a discriminator that is."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from robustfast.evaluation.afd import hdh
from robustfast.evaluation.afd.grids import sweeps
from robustfast.evaluation.afd.hdh import (
    HDH,
    alpha,
    correlation,
    distance,
    fitted_threshold,
    separation,
)
from robustfast.evaluation.features import collect
from robustfast.evaluation.partial_results import PartialResults
from robustfast.visualization.hdh_curve import draw_hdh_curve


def logits(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_perfect_separation_is_two_and_chance_is_zero() -> None:
    perfect = separation(logits(1, 2, 3, 4), logits(-1, -2, -3, -4))
    assert (perfect.fixed, perfect.fitted) == (2, 2)
    assert distance(perfect.fixed) == distance(perfect.fitted) == 2
    same = logits(0.5, -1, 2, -3, 0.25, 4)
    chance = separation(same, same)
    assert distance(chance.fixed) == distance(chance.fitted) == 0
    # A discriminator that is always wrong tells as much as one that is always right.
    assert distance(alpha(logits(-1, -2), logits(1, 2), 0.0)) == 2
    # What lies on the threshold counts as attacked.
    assert alpha(logits(0, 1), logits(0, 1), 0.0) == 0.5 + 0.5
    assert alpha(logits(3, 1, -1, 2), logits(-3, 1), 0.0) == 0.75 + 0.5


def test_threshold_is_fitted_on_the_other_half() -> None:
    # Shifted: threshold 0 takes all for clean, 6 tells them apart.
    shifted = separation(logits(9, 8, 7, 9), logits(5, 4, 3, 2))
    assert distance(shifted.fixed) == 0
    assert distance(shifted.fitted) == 2
    assert shifted.threshold == 6
    # The images at even places fit it, those at odd places are judged: there it is worth nothing.
    halves = separation(logits(9, 1, 9, 1), logits(5, 1, 5, 1))
    assert halves.threshold == 7
    assert distance(halves.fitted) == 0
    # Fitted on all of them it would be -2, or on those that are judged.
    other = separation(logits(3, 1, 3, 1), logits(2, -5, 2, -5))
    assert (other.threshold, other.fixed, other.fitted) == (2.5, 2, 1)


def test_fitted_threshold_is_the_best_there_is() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = (torch.randn(41, generator=generator) + 0.5).round(decimals=1)
    attacked = (torch.randn(41, generator=generator) - 0.5).round(decimals=1)
    values = torch.cat([clean, attacked]).unique()
    best = max(alpha(clean, attacked, float(value)) for value in values)
    assert alpha(clean, attacked, fitted_threshold(clean, attacked)) == pytest.approx(best, abs=1e-12)
    assert fitted_threshold(logits(2, 2), logits(2)) == 2
    assert alpha(logits(2, 2), logits(2), 2.0) == 1


def test_correlation_is_scipys() -> None:
    x, y = [0.1, 0.5, 0.4, 1.9, 1.2], [0.0, 0.3, 0.4, 0.9, 0.5]
    found = correlation(x, y)
    assert found["points"] == 5
    assert found["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["pearson_p"] == pytest.approx(stats.pearsonr(x, y).pvalue)
    assert found["spearman"] == pytest.approx(0.9)
    assert 0 < found["spearman_p"] < 0.1
    nothing = dict.fromkeys(("pearson", "pearson_p", "spearman", "spearman_p"))
    assert correlation([0.0, 0.0, 0.0], [0.1, 0.2, 0.3]) == {"points": 3, **nothing}
    assert correlation([0.0, 1.0], [0.1, 0.2]) == {"points": 2, **nothing}


class Judge(nn.Module):
    """Clean is what lies high along the direction of its label."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.direction = nn.Embedding(10, features)
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return (self.dropout(z) * self.direction(y)).sum(1, keepdim=True)


_ATTACKS = ("pgd-linf", "fgsm", "ddn")


@pytest.fixture(scope="module")
def judged(untrained: Callable, context_of: Callable) -> SimpleNamespace:
    """The part on 20 digits, with a discriminator of the test's own in train mode."""
    run = untrained("afd")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = Judge(run.model.classifier.in_features)
    objective = SimpleNamespace(discriminator=judge, networks=lambda: {"discriminator": judge})
    context = context_of(run, images=20)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdh, "run_objective", lambda run: objective)
        # The others differ in nothing that happens here, and take long.
        patch.setattr(
            hdh, "sweeps", lambda dataset: {name: sweeps(dataset)[name] for name in (*_ATTACKS, "aa")}
        )
        assert HDH.obstacle(run, context.request) is None
        result = HDH.make(context)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert judge.training
    assert not run.model.training
    return SimpleNamespace(run=run, context=context, judge=judge, result=result, numbers=result.numbers)


def test_part_judges_features_with_true_labels(judged: SimpleNamespace) -> None:
    numbers, run, context = judged.numbers, judged.run, judged.context
    grids = sweeps("digits")
    assert tuple(numbers["per_attack"]) == _ATTACKS
    json.dumps(numbers, allow_nan=False)
    judged.judge.eval()

    def told(attack: Callable | None) -> tuple[Tensor, float]:
        found = collect(run.model.features, context.batches(), attack=attack, model=run.model)
        return judged.judge(found.values, found.labels).detach().flatten(), 1 - found.accuracy

    clean, clean_error = told(None)
    assert numbers["clean_error"] == clean_error
    for name, place in (("pgd-linf", 3), ("fgsm", 5)):
        grid, record = grids[name], numbers["per_attack"][name]
        assert record["eps"] == list(grid.printed)
        assert record["settings"] == grid.settings(run.model, seed=0)
        attacked, error = told(grid.named.build(run.model, grid.printed[place], seed=0))
        expected = separation(clean, attacked)
        assert record["fixed"]["alpha"][place] == pytest.approx(expected.fixed)
        assert record["fitted"]["alpha"][place] == pytest.approx(expected.fitted)
        assert record["fitted"]["threshold"][place] == pytest.approx(expected.threshold)
        assert record["fitted"]["distance"][place] == pytest.approx(2 * abs(expected.fitted - 1))
        assert record["gap"][place] == error - clean_error
    for record in numbers["per_attack"].values():
        # The images themselves.
        assert record["gap"][0] == record["fixed"]["distance"][0] == 0
        assert len(record["gap"]) == len(record["eps"]) == len(record["fitted"]["distance"])


def test_minimal_attacks_run_once_and_are_pulled_into_each_ball(judged: SimpleNamespace) -> None:
    run, context, grid = judged.run, judged.context, sweeps("digits")["ddn"]
    x, y, index = next(context.batches())
    found = [attack(x, y, index) for attack in hdh._at_radii(grid, run.model, 0)]
    nearest = grid.named.build(run.model, None, seed=0)(x, y, index)
    for x_adv, eps in zip(found, grid.printed[1:], strict=True):
        length = (x_adv - x).flatten(1).norm(dim=1)
        assert (length <= eps * (1 + 1e-5)).all()
        near = (nearest - x).flatten(1).norm(dim=1) <= eps
        torch.testing.assert_close(x_adv[near], nearest[near])


def test_an_interrupted_one_goes_on_with_its_next_batch(
    judged: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdh, "run_objective", lambda run: SimpleNamespace(discriminator=judged.judge))
    monkeypatch.setattr(hdh, "sweeps", lambda dataset: {name: sweeps(dataset)[name] for name in _ATTACKS})
    counts = {"kept": 0, "stop": 7}
    keep = PartialResults.keep

    def counted(*arguments: object) -> None:
        if counts["kept"] == counts["stop"]:
            raise KeyboardInterrupt
        keep(*arguments)  # type: ignore[arg-type]
        counts["kept"] += 1

    monkeypatch.setattr(PartialResults, "keep", counted)
    with pytest.raises(KeyboardInterrupt):
        HDH.make(judged.context)
    folder = judged.context.folder / "afd-hdh.partial"
    assert len(list(folder.iterdir())) == 7
    counts["stop"] = -1
    assert HDH.make(judged.context).numbers == judged.numbers
    # Clean images and three attacks at their radii, in two batches each, none of them twice.
    assert counts["kept"] == 2 * (1 + sum(len(sweeps("digits")[name].printed) - 1 for name in _ATTACKS))
    assert not folder.exists()


def test_figure_and_tables_are_the_numbers(judged: SimpleNamespace) -> None:
    numbers = judged.numbers
    (path,) = judged.result.figures
    assert path == judged.context.figure("hdh")
    assert path.exists()
    left, fixed, fitted, right = draw_hdh_curve(numbers).axes
    assert [list(line.get_ydata()) for line in left.lines] == [numbers["fixed"], numbers["fitted"]]
    assert list(left.lines[0].get_xdata()) == numbers["eps"]
    assert list(right.lines[0].get_ydata()) == [100 * gap for gap in numbers["gap"]]
    for axes, kind in ((fixed, "fixed"), (fitted, "fitted")):
        for line, record in zip(axes.lines, numbers["per_attack"].values(), strict=True):
            assert list(line.get_xdata()) == record[kind]["distance"]
            assert list(line.get_ydata()) == [100 * gap for gap in record["gap"]]
    own = numbers["per_attack"]["pgd-linf"]
    assert (numbers["gap"], numbers["fitted"]) == (own["gap"], own["fitted"]["distance"])
    points = sum(len(record["eps"]) - 1 for record in numbers["per_attack"].values())
    assert numbers["correlation"]["fitted"]["points"] == points
    curve, _ = judged.result.tables
    assert curve.row_count == len(numbers["eps"])


def test_runs_without_a_discriminator_of_their_features_are_refused(
    untrained: Callable, context_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained("plain")
    monkeypatch.setattr(hdh, "run_objective", lambda run: SimpleNamespace(networks=dict))
    reason = HDH.obstacle(run, context_of(run).request)
    assert reason is not None
    assert "trains no discriminator" in reason
