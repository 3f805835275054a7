"""Precision: what runs in the short type and what stays in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from precision_gradients import error, gradient
from precision_seeds import RESULTS, overlap, summary
from tiny_runs import tiny
from torch import Tensor, nn

from robustfast.data import Batch, feed, load
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.objectives import OBJECTIVES, Phase
from robustfast.training import precision as precision_module
from robustfast.training.config import TrainConfig
from robustfast.training.engine import Engine
from robustfast.training.precision import PRECISIONS, LossScale, Precision
from robustfast.training.presets import PRESETS

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_convolutions_are_short_and_statistics_are_not(name: str, dtype: torch.dtype) -> None:
    convolution, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    with Precision(name, CPU).autocast():
        y = convolution(torch.rand(4, 1, 8, 8))
        loss = nn.functional.cross_entropy(norm(y).mean((2, 3)), torch.tensor([0, 1, 0, 1]))
    assert y.dtype == dtype
    assert loss.dtype == torch.float32
    assert norm.running_mean.dtype == convolution.weight.dtype == torch.float32


def test_a_pass_without_gradients_does_not_cut_those_of_the_next() -> None:
    linear = nn.Linear(2, 2)
    runner = Precision("bf16", CPU)
    with runner.autocast():
        with torch.no_grad():
            linear(torch.ones(1, 2))
        loss = linear(torch.ones(1, 2)).float().sum()
    loss.backward()
    assert torch.equal(linear.weight.grad, torch.ones(2, 2))


def test_only_half_precision_scales_its_losses() -> None:
    assert [Precision(name, CPU).loss_scale() is not None for name in PRECISIONS] == [False, False, True]


def test_the_loss_scale_is_torchs() -> None:
    """Against `torch.amp.GradScaler`: what the gradients become, what counts as an overflow, how the scale moves."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = LossScale(CPU)
    ours.INTERVAL = 3  # type: ignore[misc]
    fine, huge = torch.tensor([0.25, 0.0, -3.0]), torch.tensor([0.25, float("inf"), 0.0])
    for value in (fine, huge, huge, fine, fine, fine, fine, torch.full((3,), float("nan")), fine):
        weight.grad = theirs.scale(value.clone())
        mine = value * ours.value
        before = weight.detach().clone()
        theirs.step(optimizer)
        theirs.update()
        overflow = ours.unscale([mine])
        ours.update(overflow)
        assert bool(overflow) == torch.equal(weight, before)
        if not overflow:
            assert torch.equal(mine, value)
        assert float(ours.value) == theirs.get_scale()


def test_without_gradients_nothing_overflows() -> None:
    assert float(LossScale(CPU).unscale([])) == 0


def test_unknown_and_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown precision 'fp61'; did you mean 'fp16'"):
        Precision("fp61", CPU)

    def missing(*args: object) -> None:
        raise RuntimeError("could not create a primitive\nmore")

    monkeypatch.setattr(precision_module.nn.functional, "conv2d", missing)
    with pytest.raises(
        UserError, match=r"--precision fp16: .* on cpu \(could not create a primitive\); use --precision fp32"
    ):
        Precision("fp16", CPU)


# --- what stays in float32, in a whole step of AAT++ ------------------------------------------------------

SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}


def colour() -> Batch:
    """The digits as colour images: with one channel both layouts are the same memory."""
    digits = load("digits", "train")
    x = digits.images[:24].float().div(digits.scale).expand(-1, 3, -1, -1)
    return Batch(x.contiguous(memory_format=torch.channels_last), digits.labels[:24], torch.arange(24))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_a_step_computes_in_which_type_and_layout(precision: str) -> None:
    config = tiny(precision=precision, channels_last=True)
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=3).to(memory_format=torch.channels_last)
    objective = OBJECTIVES["aatpp"](model, config.objective, config.attack, seed=0)
    objective.begin(0, 1.0)
    short = SHORT.get(precision, torch.float32)
    seen: dict[str, list[tuple[torch.dtype, bool]]] = {"images": [], "maps": [], "losses": []}
    statistics: dict[nn.Module, list[Tensor]] = {}

    def note(kind: str, *values: Tensor) -> None:
        for value in values:
            last = value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
            seen[kind].append((value.dtype, last))

    def watch(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            note("maps", out)
            if module.in_channels == 3:
                note("images", given[0])
        elif module.training:
            statistics.setdefault(module, []).append(given[0].detach())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(watch)
    attack, phases = objective.attack, objective.phases

    def attacked(*args: Any, **keywords: Any) -> dict[str, Tensor]:
        found = attack(*args, **keywords)
        note("images", args[0], *found.values())
        return found

    def watched(*args: Any) -> Iterator[Phase]:
        for phase in phases(*args):
            note("losses", phase.loss, *phase.terms.values())
            yield phase

    objective.attack, objective.phases = attacked, watched
    engine = Engine(objective, config, CPU)
    engine.step(colour(), lr=0.0)

    assert set(seen["images"]) == {(torch.float32, True)}
    assert set(seen["maps"]) == {(short, True)}
    assert set(seen["losses"]) == {(torch.float32, False)}
    for value in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        assert value.dtype == torch.float32
    for updater in engine.updaters.values():
        assert {g.dtype for g in updater.gradients} == {torch.float32}

    # Float32 by its values, too: half precision would round a mean by up to 4e-3 of its size.
    assert len(statistics) == 4
    for norm, inputs in statistics.items():
        assert {value.dtype for value in inputs} == {short}
        mean = torch.zeros(norm.num_features, dtype=torch.float64)
        for value in inputs:
            mean = 0.9 * mean + 0.1 * value.double().mean((0, 2, 3))
        assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)


# --- what an option changes in a gradient ---------------------------------------------------------------


@cache
def trained() -> tuple[ThreeWay, TrainConfig, Batch]:
    """Three epochs of AAT++ on the digits in float32, against one step of the attack, and the batch that comes next."""
    config = tiny(batch_size=120)
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1)
    objective = OBJECTIVES["aatpp"](model, config.objective, config.attack, seed=0)
    engine = Engine(objective, config, CPU)
    source = feed(load("digits", "train"), 120, seed=0, say=None)
    for epoch in range(3):
        objective.begin(epoch, 1.0)
        for batch in source.batches(epoch):
            engine.step(batch, lr=0.05)
    return model, config, next(source.batches(3))


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"channels_last": True}, 1e-4),
        ({"precision": "bf16"}, 0.2),
        ({"precision": "bf16", "channels_last": True}, 0.2),
        ({"precision": "fp16", "channels_last": True}, 0.1),
    ],
    ids=["channels-last", "bf16", "bf16 channels-last", "fp16 channels-last"],
)
@pytest.mark.parametrize("method", ["aatpp", "at"])
def test_error_of_one_gradient(method: str, fields: dict[str, Any], allowed: float) -> None:
    """The same weights, images and draws; the preset's attack runs in the precision and layout of the step."""
    model, config, batch = trained()
    config = replace(
        config, method=method, objective=OBJECTIVES[method].Config(), attack=PRESETS["digits-aatpp"].attack
    )
    right, _ = gradient(model, config, batch, progress=1.0)
    mine, _ = gradient(model, replace(config, **fields), batch, progress=1.0)
    assert 0 < error(mine, right) < allowed


QUOTED = {
    "robust way, attacked": "adversarial.r",
    "robust way, natural": "natural.r",
    "non-robust way, natural": "natural.n",
    "standard way, natural": "natural.s",
}
"""Rows of the table over seeds in docs/precision.md, and what they are called in the JSON."""


def test_quoted_accuracies_over_seeds_are_those_of_the_stored_runs() -> None:
    """Nothing is trained here: bench/precision_seeds.py did that and stored the accuracies of its runs."""
    stored = json.loads(RESULTS.read_text())
    assert [[row["seed"] for row in rows] for rows in stored["accuracy"].values()] == [[0, 1, 2]] * 2
    one, other = (summary(rows) for rows in stored["accuracy"].values())
    assert [one, other] == [stored["summary"][name] for name in ("fp32", "bf16 channels-last")]
    page = (RESULTS.parents[2] / "docs" / "precision.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    quoted = {row[0]: row[1:] for row in rows if row[0] in QUOTED}
    assert set(quoted) == set(QUOTED)
    for row, name in QUOTED.items():
        figures = [f"{100 * s[name]['mean']:.2f} +- {100 * s[name]['sd']:.2f} %" for s in (one, other)]
        assert quoted[row][:2] == figures
        assert ("overlap" in quoted[row][2]) == stored["overlap"][name] == overlap(one[name], other[name])
