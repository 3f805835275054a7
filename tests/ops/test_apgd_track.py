from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustfast import use_backend
from robustfast.ops import apgd_track, backends

MISSING = backends()["apgd_track"]
HERE = [name for name, reason in MISSING.items() if reason is None and name != "cuda"]

State = dict[str, Any]


def start(batch: int, seed: int = 0, dtype: torch.dtype = torch.float32, classes: int = 4) -> State:
    """A state as it begins, at an image with loss 1 that is not fooled."""
    generator = torch.Generator().manual_seed(seed)
    x_adv, grad, x = torch.rand(3, batch, 3, 4, 5, generator=generator, dtype=dtype)
    loss = torch.ones(batch, dtype=dtype)
    return {
        "x_adv": x_adv,
        "grad": grad,
        "loss": loss,
        "logits": torch.eye(classes, dtype=dtype)[:1].repeat(batch, 1),
        "y": torch.zeros(batch, dtype=torch.int64),
        "x_best": x_adv.clone(),
        "grad_best": grad.clone(),
        "loss_best": loss.clone(),
        "x_fooled": x.clone(),
        "fooled": torch.zeros(batch, dtype=torch.bool),
        "loss_last": torch.zeros(batch, dtype=dtype),
        "increases": torch.zeros(batch, dtype=torch.int64),
        "loss_checked": loss.clone(),
        "reduced": torch.ones(batch, dtype=torch.bool),
        "step_size": torch.full((batch,), 0.5, dtype=dtype),
    }


def copied(state: State) -> State:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def moved_on(state: State, losses: list[float], seed: int = 1) -> State:
    """The state with the next image and gradient, and these losses at it."""
    generator = torch.Generator().manual_seed(seed)
    x_adv, grad = torch.rand(2, *state["x_adv"].shape, generator=generator, dtype=state["x_adv"].dtype)
    return copied(state) | {"x_adv": x_adv, "grad": grad, "loss": state["loss"].new_tensor(losses)}


def tracked(backend: str, state: State, **more: Any) -> State:
    after = copied(state)
    with use_backend(backend):
        assert apgd_track(**after, **more) is None
    return after


@pytest.mark.parametrize("backend", HERE)
def test_the_best_and_the_fooled_are_kept_sample_by_sample(backend: str) -> None:
    state = moved_on(start(5), [2.0, 1.0, 0.5, torch.nan, torch.inf])
    state["logits"][0, 2] = 7
    state["logits"][2, 1] = 7
    after = tracked(backend, state)
    better = torch.tensor([True, False, False, False, True])
    fooled = torch.tensor([True, False, True, False, False])
    for kept, now in (("x_best", "x_adv"), ("grad_best", "grad")):
        assert torch.equal(after[kept][better], state[now][better])
        assert torch.equal(after[kept][~better], state[kept][~better])
    assert after["loss_best"].tolist() == [2.0, 1.0, 1.0, 1.0, torch.inf]
    assert torch.equal(after["fooled"], fooled)
    assert torch.equal(after["x_fooled"][fooled], state["x_adv"][fooled])
    assert torch.equal(after["x_fooled"][~fooled], state["x_fooled"][~fooled])
    # The loss before the first step counts as 0; a nan is no rise.
    assert after["increases"].tolist() == [1, 1, 1, 0, 1]
    torch.testing.assert_close(after["loss_last"], state["loss"], equal_nan=True)
    for same in ("x_adv", "grad", "step_size", "reduced", "loss_checked"):
        assert torch.equal(after[same], state[same])
    # One that was fooled before stays so, and keeps its image.
    right = moved_on(after, [0.0] * 5, seed=2) | {"logits": start(5)["logits"]}
    again = tracked(backend, right)
    assert torch.equal(again["fooled"], fooled)
    assert torch.equal(again["x_fooled"], after["x_fooled"])


@pytest.mark.parametrize("backend", HERE)
def test_descending_mirrors_climbing(backend: str) -> None:
    state = moved_on(start(4), [2.0, 1.0, 0.5, -3.0])
    state["loss_last"] = torch.tensor([2.5, 1.0, 0.25, 0.0])
    state["reduced"][::2] = False
    mirrored = copied(state)
    for name in ("loss", "loss_best", "loss_last", "loss_checked"):
        mirrored[name] = -mirrored[name]
    up = tracked(backend, mirrored, window=3)
    down = tracked(backend, state, window=3, descend=True)
    for name, value in down.items():
        assert torch.equal(value, -up[name] if name.startswith("loss") else up[name]), name
    assert down["loss_best"].tolist() == [1.0, 1.0, 0.5, -3.0]


@pytest.mark.parametrize("backend", HERE)
def test_any_loss_is_better_than_nan(backend: str) -> None:
    state = moved_on(start(2), [-5.0, torch.nan])
    state["loss_best"][:] = torch.nan
    after = tracked(backend, state)
    assert torch.equal(after["x_best"][0], state["x_adv"][0])
    assert after["loss_best"][0] == -5
    assert torch.equal(after["x_best"][1], state["x_best"][1])


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_largest_logit_is_that_of_argmax(backend: str, targeted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    classes = 7
    logits = torch.randint(0, 3, (40, classes), generator=generator).float()
    logits[:6] = -torch.inf
    logits[6:12, 3] = torch.nan
    logits[9:12, 1] = torch.nan
    logits[12:15] = torch.nan
    y = torch.randint(0, classes, (40,), generator=generator)
    y[0], y[6], y[9], y[12] = 0, 3, 1, 0
    # Labels outside the logits: no logit is theirs.
    y[20], y[21] = classes, -1
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        state = start(40, classes=classes) | {"logits": logits.to(dtype), "y": y}
        after = tracked(backend, state, targeted=targeted)
        assert torch.equal(after["fooled"], (logits.argmax(1) == y) == targeted)


@pytest.mark.parametrize("backend", HERE)
def test_many_classes(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 50, (6, 1500), generator=generator).float()
    y = logits.argmax(1)
    state = start(6) | {"logits": logits, "y": y + torch.tensor([0, 1, 0, -1, 0, 0])}
    after = tracked(backend, state)
    assert after["fooled"].tolist() == [False, True, False, True, False, False]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("kind", ["int", "tensor"])
def test_the_check_halves_and_starts_anew(backend: str, kind: str) -> None:
    """Condition 1 at rho 0.75 and a window of 4: at most 3 rises. Condition 2: no new best, and not halved before."""
    #        few    many   stuck  rose since    both halved before
    state = moved_on(start(5), [0.5, 3.0, 0.5, 3.0, 0.5])
    state["increases"] = torch.tensor([3, 3, 4, 4, 4])
    state["loss_last"] = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    state["reduced"] = torch.tensor([True, True, False, False, True])
    after = tracked(backend, state, window=4 if kind == "int" else torch.tensor(4))
    halved = torch.tensor([True, False, True, False, False])
    assert after["step_size"].tolist() == [0.25, 0.5, 0.25, 0.5, 0.5]
    assert torch.equal(after["reduced"], halved)
    assert after["increases"].tolist() == [0] * 5
    assert torch.equal(after["loss_checked"], after["loss_best"])
    for now, best in (("x_adv", "x_best"), ("grad", "grad_best")):
        assert torch.equal(after[now][halved], state[best][halved])
        assert torch.equal(after[now][~halved], state[now][~halved])
    no = tracked(backend, state, window=0 if kind == "int" else torch.tensor(0))
    assert torch.equal(no["step_size"], state["step_size"])
    assert no["increases"].tolist() == [3, 4, 4, 5, 4]


@pytest.mark.parametrize("backend", HERE)
def test_rises_are_compared_in_float32(backend: str) -> None:
    """100 x 0.29 is 28.999999999999996 in float64 and 29 in the float32 of the authors' code: 29 rises are few."""
    state = start(2)
    state["loss_last"][:] = 9
    state["increases"] = torch.tensor([29, 30])
    assert tracked(backend, state, window=100, rho=0.29)["reduced"].tolist() == [True, False]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("descend", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_l1_check(backend: str, descend: bool, dtype: torch.dtype) -> None:
    """m / n / 1.5 of the entries move next; fewer than 0.95 of those before restart; others step 1.5 times shorter."""
    n, sign = 60, -1 if descend else 1
    differing, before = torch.tensor([19, 18, 19, 60, 0, 0]), torch.tensor([20, 20, 20, 60, 0, 7])
    state = start(6, dtype=dtype)
    state["loss_best"] += sign
    state["loss"] = state["loss"].clone()
    x = state["x_best"].clone()
    for row, m in zip(x.flatten(1), differing, strict=True):
        row[: int(m)] += 0.5
    state["x_adv"], state["grad"] = state["x_adv"] + 1, state["grad"] + 1
    eps = torch.tensor(3.0, dtype=dtype)
    state["step_size"] = sign * torch.tensor([3.0, 1.2, 0.31, 3.0, 0.3, 0.3], dtype=dtype)
    l1 = {"x": x, "eps": eps, "sparsity": torch.full((6,), 0.2, dtype=dtype), "moved": before}
    after = tracked(backend, state | l1, window=4, descend=descend)
    fewer = torch.tensor([False, True, False, False, False, True])
    wanted = torch.tensor([3.0 / 1.5, 3.0, 0.3, 2.0, 0.3, 3.0], dtype=dtype)
    torch.testing.assert_close(after["step_size"], sign * wanted, rtol=1e-7, atol=0)
    assert torch.equal(after["sparsity"], (differing / n / 1.5).to(dtype))
    assert torch.equal(after["moved"], differing)
    assert torch.equal(after["x_adv"][fewer], state["x_best"][fewer])
    assert torch.equal(after["grad"][fewer], state["grad_best"][fewer])
    assert torch.equal(after["x_adv"][~fewer], state["x_adv"][~fewer])
    assert torch.equal(after["reduced"], state["reduced"])
    no = tracked(backend, state | l1, descend=descend)
    for same in ("step_size", "sparsity", "moved", "x_adv"):
        assert torch.equal(no[same], (state | l1)[same])


@pytest.mark.parametrize("backend", HERE)
def test_an_l1_image_that_is_the_best_counts_itself(backend: str) -> None:
    state = moved_on(start(1), [2.0])
    x = state["x_adv"].clone()
    x[0, 0, 0] += 0.5
    l1 = {"x": x, "eps": 1.0, "sparsity": torch.tensor([0.2]), "moved": torch.tensor([60])}
    assert tracked(backend, state | l1, window=1)["moved"].tolist() == [5]


def published_check(losses: Tensor, step: int, window: int, rho: float) -> Tensor:
    """Condition 1 of the authors' code: rises among the last `window` losses [step, B]; before row 0 comes row -1."""
    rises = torch.zeros_like(losses[0])
    for back in range(window):
        rises += (losses[step - back] > losses[step - back - 1]).float()
    return rises <= window * rho * torch.ones_like(rises)


@pytest.mark.parametrize("backend", HERE)
def test_a_run_halves_where_the_published_code_does(backend: str) -> None:
    """Losses as they come, against a table of all of them: whole schedules, sample by sample."""
    steps, batch, rho = 40, 12, 0.75
    # Drifting upwards, so that some windows rise nearly always; on a grid, so that losses tie.
    generator = torch.Generator().manual_seed(3)
    losses = torch.randn(steps + 1, batch, generator=generator) + torch.linspace(0, 3, batch) * torch.arange(
        steps + 1.0
    ).view(-1, 1)
    losses = (losses * 4).round() / 4
    state = start(batch)
    for name in ("loss_best", "loss_checked"):
        state[name] = losses[0].clone()
    table = torch.zeros(steps, batch)
    best, checked = losses[0].clone(), losses[0].clone()
    step_size, reduced = torch.full((batch,), 0.5), torch.ones(batch, dtype=torch.bool)
    window, since, halvings = max(int(0.22 * steps), 1), 0, 0
    shrink, least = max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    for step in range(steps):
        table[step] = losses[step + 1]
        best = torch.maximum(best, losses[step + 1])
        since += 1
        now = since == window
        if now:
            flagged = published_check(table, step, window, rho) | (~reduced & (checked >= best))
            reduced, checked = flagged, best.clone()
            step_size = torch.where(flagged, step_size / 2, step_size)
            halvings += int(flagged.sum())
        state = tracked(
            backend,
            moved_on(state, losses[step + 1].tolist(), seed=step),
            window=window if now else 0,
            rho=rho,
        )
        assert torch.equal(state["loss_best"], best)
        assert torch.equal(state["step_size"], step_size)
        if now:
            window, since = max(window - shrink, least), 0
    assert halvings > 0
    assert len(step_size.unique()) > 2


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("l1", [False, True])
def test_layouts_do_not_matter(backend: str, l1: bool) -> None:
    """States that are views of wider tensors, or lie otherwise than the image, are written where they lie."""
    state = moved_on(start(5), [2.0, 0.5, 0.5, 3.0, 0.5])
    state["increases"] = torch.tensor([0, 9, 0, 0, 9])
    state["logits"][0, 1] = 9
    if l1:
        state |= {"x": state["x_best"] + 0.1, "eps": torch.linspace(1, 2, 5)}
        state |= {"sparsity": torch.full((5,), 0.2), "moved": torch.full((5,), 70)}
    expected = tracked(backend, state, window=4)

    def strided(name: str, value: Tensor) -> Tensor:
        return torch.stack([value, torch.zeros_like(value)], -1)[..., 0]

    def late(name: str, value: Tensor) -> Tensor:
        flat = torch.empty(value.numel() + 1, dtype=value.dtype)[1:]
        return flat.view(value.shape).copy_(value)

    def last(name: str, value: Tensor) -> Tensor:
        return value.clone(memory_format=torch.channels_last) if value.dim() == 4 else value.clone()

    def mixed(name: str, value: Tensor) -> Tensor:
        return last(name, value) if name in ("x_adv", "grad_best", "x_fooled") else value.clone()

    def transposed(name: str, value: Tensor) -> Tensor:
        return value.mT.contiguous().mT if name == "logits" else value.clone()

    for lay in (strided, late, last, mixed, transposed):
        laid = {name: lay(name, value) for name, value in state.items()}
        with use_backend(backend):
            apgd_track(**laid, window=4)
        for name, value in expected.items():
            assert torch.equal(laid[name], value), (lay.__name__, name)


@pytest.mark.parametrize("backend", HERE)
def test_samples_are_alone(backend: str) -> None:
    state = moved_on(start(6), [2.0, 0.5, 1.5, 3.0, 0.5, 0.25])
    state["increases"] = torch.tensor([0, 9, 0, 4, 9, 2])
    state["reduced"][::2] = False
    together = tracked(backend, state, window=4)
    for i in range(6):
        alone = tracked(backend, {name: value[i : i + 1] for name, value in state.items()}, window=4)
        for name, value in alone.items():
            assert torch.equal(value, together[name][i : i + 1]), name


def test_one_graph_serves_every_window() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(apgd_track, fullgraph=True, backend="aot_eager")
    state = moved_on(start(3), [2.0, 0.5, 0.25])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for window in (0, 1, 5):
            after = copied(state)
            compiled(**after, window=torch.tensor(window))
            for name, value in tracked("auto", state, window=window).items():
                assert torch.equal(after[name], value), (window, name)


WRONG: dict[str, State] = {
    "x_adv is torch.float16.*leave the ball|x is torch.float16": {"x_adv": torch.zeros(2, 3, 4, 5).half()},
    r"x_best has shape \(2, 3\), expected \(2, 3, 4, 5\)": {"x_best": torch.zeros(2, 3)},
    "grad is torch.float64, expected torch.float32": {"grad": torch.zeros(2, 3, 4, 5).double()},
    "grad_best is on meta": {"grad_best": torch.zeros(2, 3, 4, 5, device="meta")},
    r"logits have shape \(2,\), expected \[2, K\]": {"logits": torch.zeros(2)},
    r"logits have shape \(3, 4\), expected \[2, K\]": {"logits": torch.zeros(3, 4)},
    r"logits have shape \(2, 0\), expected \[2, K\]": {"logits": torch.zeros(2, 0)},
    "logits are torch.int64": {"logits": torch.zeros(2, 4, dtype=torch.int64)},
    "loss is torch.bfloat16, expected float32 or float64": {"loss": torch.zeros(2).bfloat16()},
    "loss is ndarray, expected a tensor": {"loss": np.zeros(2)},
    "loss_best is torch.float64, expected torch.float32": {"loss_best": torch.zeros(2).double()},
    "y is torch.int32, expected torch.int64": {"y": torch.zeros(2, dtype=torch.int32)},
    r"increases has shape \(3,\), expected \(2,\)": {"increases": torch.zeros(3, dtype=torch.int64)},
    "fooled is torch.int64, expected torch.bool": {"fooled": torch.zeros(2, dtype=torch.int64)},
    r"loss_last of shape \(2,\) is expanded \(strides \(0,\)\)": {"loss_last": torch.zeros(1).expand(2)},
    "window is -1, expected a number of steps": {"window": -1},
    "window is 1.5, expected a number of steps": {"window": 1.5},
    r"window is torch.float32 \(\), expected an int or an int64": {"window": torch.tensor(1.0)},
    "eps, sparsity, moved not given; the l1 check needs all of": {"x": torch.zeros(2, 3, 4, 5)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"apgd_track: ({message})"):
        apgd_track(**start(2) | WRONG[message])
