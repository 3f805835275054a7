"""How far features move: the closed form of a linear network, and what the part makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from robustfast.attacks import FGSM
from robustfast.evaluation.afd.grids import sweeps
from robustfast.evaluation.afd.sensitivity import SENSITIVITY, moved
from robustfast.evaluation.features import collect
from robustfast.evaluation.partial_results import PartialResults
from robustfast.models import OneWay
from robustfast.visualization.sensitivity_curves import draw_sensitivity_curves


def linear() -> OneWay:
    def backbone() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 5, bias=False))
        module.features = 5  # type: ignore[assignment]
        return module

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OneWay(backbone, num_classes=2)


def test_linear_network_moves_by_the_closed_form() -> None:
    network, eps = linear(), 0.1
    generator = torch.Generator().manual_seed(1)
    # Inside the box by more than eps: nothing is clipped.
    x = 0.2 + 0.6 * torch.rand(9, 1, 4, 4, generator=generator)
    y = torch.arange(9) % 2
    batch = [(x, y, torch.arange(9))]
    clean = collect(network.features, batch)
    attacked = collect(network.features, batch, attack=FGSM(network, eps=eps))
    weight = network.encoder[1].weight.detach()
    # Of two classes the gradient of the cross entropy has the sign of (w_other - w_y) W, whatever the image.
    rows = network.classifier.weight.detach()
    away = (weight @ (eps * ((rows[1] - rows[0]) @ weight).sign())).norm()
    ratios = (away / (x.flatten(1) @ weight.T).norm(dim=1)).double()
    found = moved(clean.values, attacked.values)
    assert found.se == pytest.approx(away.item(), rel=1e-5)
    assert found.median == pytest.approx(ratios.median().item(), rel=1e-5)
    assert found.std == pytest.approx(ratios.std(correction=0).item(), rel=1e-5)
    assert found.without == 0


def test_median_std_and_mean_by_hand() -> None:
    clean = torch.tensor([[1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 0.0]])
    attacked = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 4.0], [3.0, 4.0]])
    found = moved(clean, attacked)
    ratios = [1.0, 0.5, 1.25]
    assert found.median == 1.0
    assert found.std == pytest.approx(torch.tensor(ratios).std(correction=0).item())
    # The image without features counts here.
    assert found.se == (1 + 1 + 5 + 5) / 4
    assert found.without == 1
    # Of an even number, half-way.
    assert moved(clean[:2], attacked[:2]).median == 0.75
    dead = moved(torch.zeros(3, 2), torch.zeros(3, 2))
    assert (dead.median, dead.std, dead.se, dead.without) == (0, 0, 0, 3)


def test_part_attacks_each_run_by_itself(untrained: Callable, context_of: Callable) -> None:
    run, other = untrained("mine"), untrained("theirs", seed=1, network="one_way")
    other.model.train()
    modes = [module.training for module in other.model.modules()]
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    context = context_of(run, {"at": other}, images=40, seed=3)
    result = SENSITIVITY.make(context)
    assert [module.training for module in other.model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in other.model.state_dict().items())
    numbers = result.numbers
    json.dumps(numbers, allow_nan=False)
    grid = sweeps("digits")["pgd-linf"]
    for model, record in ((run.model, numbers), (other.model, numbers["others"]["at"])):
        clean = collect(model.features, context.batches(), model=model)
        attack = grid.named.build(model, grid.printed[2], seed=3)
        attacked = collect(model.features, context.batches(), attack=attack, model=model)
        found = moved(clean.values, attacked.values)
        assert record["eps"] == list(grid.printed)
        assert (record["settings"]["steps"], record["settings"]["seed"]) == (attack.steps, 3)
        assert record["median"][2] == pytest.approx(found.median)
        assert record["std"][2] == pytest.approx(found.std)
        assert record["se"][2] == pytest.approx(found.se)
        assert (record["accuracy"][0], record["accuracy"][2]) == (clean.accuracy, attacked.accuracy)
        assert record["median"][0] == record["std"][0] == record["se"][0] == 0
        assert record["median"][1] > 0.01
    (path,) = result.figures
    assert path.exists()
    (table,) = result.tables
    assert [cell for cell in table.columns[0].cells if cell] == ["at", "mine"]


def test_an_interrupted_one_goes_on_with_its_next_batch(
    untrained: Callable, context_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(untrained("mine"), images=20)
    whole = SENSITIVITY.make(context).numbers
    counts = {"kept": 0, "stop": 5}
    keep = PartialResults.keep

    def counted(*arguments: object) -> None:
        if counts["kept"] == counts["stop"]:
            raise KeyboardInterrupt
        keep(*arguments)  # type: ignore[arg-type]
        counts["kept"] += 1

    monkeypatch.setattr(PartialResults, "keep", counted)
    with pytest.raises(KeyboardInterrupt):
        SENSITIVITY.make(context)
    counts["stop"] = -1
    assert SENSITIVITY.make(context).numbers == whole
    # Two batches at each radius, none of them twice.
    assert counts["kept"] == 2 * len(whole["eps"])
    assert not (context.folder / "afd-sensitivity.partial").exists()


def test_figure_is_the_numbers() -> None:
    runs = {
        "at": {"eps": [0, 8 / 255], "median": [0.0, 0.5], "std": [0.0, 0.25]},
        "_afd$": {"eps": [0, 8 / 255], "median": [0.0, 0.25], "std": [0.0, 0.125]},
    }
    figure = draw_sensitivity_curves(runs, "linf")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "eps (linf, 1/255)"
    for container, run in zip(axes.containers, runs.values(), strict=True):
        line, _, (bars,) = container
        assert list(line.get_ydata()) == run["median"]
        assert line.get_xdata()[1] == pytest.approx(8, abs=0.1)
        ends = [segment[:, 1] for segment in bars.get_segments()]
        assert [(high - low) / 2 for low, high in ends] == pytest.approx(run["std"])
