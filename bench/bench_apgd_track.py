"""APGD's bookkeeping between two steps: AutoAttack's, the same without host reads, and ours in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from robustfast.ops import apgd_track, use_backend
from robustfast.reference import apgd_track as reference

SHAPES = {"128x3x32x32": (128, 3, 32, 32), "64x1x28x28": (64, 1, 28, 28), "64x3x224x224": (64, 3, 224, 224)}
# What share of the samples improves in a step: nearly all in the first, few later on.
IMPROVED = {"all": 1.0, "tenth": 0.1}
CLASSES, WINDOW, RHO = 10, 22, 0.75
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

State = dict[str, Tensor]


def state_of(shape: tuple[int, ...], improved: float) -> State:
    """A step that ends in a check: some samples improved, as many are fooled, half of the others start anew."""
    generator = torch.Generator().manual_seed(0)
    rows = shape[0]
    x_adv, grad, x_best, grad_best = (torch.rand(shape, generator=generator) for _ in range(4))
    better = torch.arange(rows) < round(improved * rows)
    y = torch.randint(0, CLASSES, (rows,), generator=generator)
    state = {
        "x_adv": x_adv,
        "grad": grad,
        "loss": torch.where(better, 2.0, 1.0),
        "logits": torch.nn.functional.one_hot((y + better) % CLASSES, CLASSES).float(),
        "y": y,
        "x_best": x_best,
        "grad_best": grad_best,
        "loss_best": torch.full((rows,), 1.5),
        "x_fooled": x_adv.clone(),
        "fooled": torch.zeros(rows, dtype=torch.bool),
        "loss_last": torch.zeros(rows),
        "increases": torch.where(torch.arange(rows) % 2 == 0, WINDOW, 0),
        "loss_checked": torch.zeros(rows),
        "reduced": torch.ones(rows, dtype=torch.bool),
        "step_size": torch.ones(rows),
    }
    return {name: value.to(DEVICE) for name, value in state.items()}


def history_of(state: State) -> Tensor:
    """Losses of a window [WINDOW + 1, B] that rise as often as the state has counted, the last row still to come."""
    table = torch.zeros(WINDOW + 1, len(state["loss"]), device=DEVICE)
    for step in range(1, WINDOW):
        table[step] = table[step - 1] + (step <= state["increases"])
    return table - table[WINDOW - 1]


def published(state: State, table: Tensor, check: bool) -> None:
    """As in AutoAttack: rows are picked by `nonzero`, which waits for the device; rises are counted from the losses."""
    s = state
    pred = s["logits"].detach().max(1)[1] == s["y"]
    s["fooled"] |= ~pred
    index = (pred == 0).nonzero().squeeze()
    s["x_fooled"][index] = s["x_adv"][index] + 0.0
    loss = s["loss"].detach().clone()
    table[WINDOW] = loss + 0
    index = (loss > s["loss_best"]).nonzero().squeeze()
    s["x_best"][index] = s["x_adv"][index].clone()
    s["grad_best"][index] = s["grad"][index].clone()
    s["loss_best"][index] = loss[index] + 0
    if not check:
        return
    rises = torch.zeros_like(loss)
    for step in range(WINDOW):
        rises += (table[WINDOW - step] > table[WINDOW - step - 1]).float()
    flagged = (rises <= WINDOW * RHO * torch.ones_like(rises)).float()
    stuck = (1.0 - s["reduced"].float()) * (s["loss_checked"] >= s["loss_best"]).float()
    flagged = torch.max(flagged, stuck)
    s["reduced"].copy_(flagged)
    s["loss_checked"].copy_(s["loss_best"])
    if flagged.sum() > 0:
        index = (flagged > 0).nonzero().squeeze()
        s["step_size"][index] /= 2.0
        s["x_adv"][index] = s["x_best"][index].clone()
        s["grad"][index] = s["grad_best"][index].clone()


@pytest.mark.parametrize("improved", IMPROVED)
@pytest.mark.parametrize("kind", ["step", "check"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_apgd_track(shape: str, kind: str, improved: str, compare: Any, fused: Any, measuring: bool) -> None:
    if "224" in shape and not (kind == "step" and improved == "tenth"):
        pytest.skip("the common step alone at this size")
    size = SHAPES[shape]
    if not measuring:
        size = (min(size[0], 8), *size[1:])
    fresh = state_of(size, IMPROVED[improved])
    window = WINDOW if kind == "check" else 0

    def rival(track: Callable[[State], None]) -> Callable[[], State]:
        state = {name: value.clone() for name, value in fresh.items()}

        def run() -> State:
            # So that each call improves and flags the same samples.
            state["loss_best"].copy_(fresh["loss_best"])
            state["increases"].copy_(fresh["increases"])
            track(state)
            return state

        return run

    def ours(backend: str) -> Callable[[], State]:
        def track(state: State) -> None:
            with use_backend(backend):
                apgd_track(**state, window=window)

        return rival(track)

    history = history_of(fresh)
    none = dict.fromkeys(("x", "eps", "sparsity", "moved"))
    rule = {"rho": RHO, "descend": False, "targeted": False, "window": torch.tensor(window, device=DEVICE)}
    compiled = torch.compile(reference.apgd_track, fullgraph=True)
    rivals: dict[str, Callable[[], State]] = {
        "eager": rival(lambda state: published(state, history, kind == "check")),
        "reference": ours("reference"),
        "compiled": rival(lambda state: compiled(**state, **none, **rule)),
    }
    rivals |= {name: ours(name) for name in fused("apgd_track", DEVICE)[:-1]}
    rivals["fused"] = ours("auto")
    expected = ours("reference")()

    def check(name: str, result: State) -> None:
        for key, value in expected.items():
            # AutoAttack keeps a table of losses instead.
            if name == "eager" and key in ("increases", "loss_last"):
                continue
            assert torch.equal(result[key], value), (name, key)

    compare("apgd_track", f"{shape}-{kind}-{improved}", rivals, check, device=DEVICE)
