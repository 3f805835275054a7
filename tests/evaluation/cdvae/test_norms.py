"""Norms of images, parts and perturbations, against a computation without the part."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from robustfast.attacks import PGDC
from robustfast.errors import UserError
from robustfast.evaluation.cdvae import norms as module
from robustfast.evaluation.cdvae.attacked import attacked
from robustfast.evaluation.cdvae.norms import PART, norms
from robustfast.evaluation.cdvae.threat import linf


def test_norms_by_hand() -> None:
    found = norms(torch.tensor([[[[3.0, -4.0]]], [[[0.0, -2.0]]]]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "l1": [7.0, 2.0],
        "l2": [5.0, 2.0],
        "linf": [4.0, 2.0],
    }


@pytest.mark.parametrize("source", [False, True])
def test_the_numbers_are_those_of_direct_calls(context_of, runs, source: bool, printed) -> None:
    context = context_of("cdvae", images=40, batch_size=16, source=str(runs("x")) if source else None)
    result = PART.make(context)
    printed(*result.tables)
    numbers = result.numbers
    model = context.run.model
    target = context.source() if source else model.way("n")
    whole = replace(context, request=replace(context.request, batch_size=40))
    ((x, y, positions),) = whole.batches()
    eps = linf(context.run)
    x_adv = PGDC(target, eps, steps=20)(x, y, positions)
    with torch.no_grad():
        clean, moved = model.split(x), model.split(x_adv)
    expected = {
        "x": clean.x,
        "g_adv": moved.g,
        "r": clean.r,
        "delta": clean.x - moved.x,
        "delta_g": clean.g - moved.g,
        "delta_r": clean.r - moved.r,
        "delta_z": clean.latent - moved.latent,
    }
    for name, values in expected.items():
        for norm, order in (("l1", 1), ("l2", 2), ("linf", math.inf)):
            each = torch.linalg.vector_norm(values.flatten(1).double(), order, dim=1)
            assert numbers[name][norm]["mean"] == pytest.approx(each.mean().item(), rel=1e-4)
            assert numbers[name][norm]["std"] == pytest.approx(
                each.std(correction=0).item(), rel=1e-3, abs=1e-5
            )
    lengths = [expected[name].flatten(1).norm(dim=1) for name in ("delta_r", "delta_g")]
    assert numbers["delta_r_larger"] == (lengths[0] > lengths[1]).double().mean().item()
    # Normalised pixels: eps over the standard deviation.
    std = model.normalisation.std.item()
    assert numbers["delta"]["linf"]["mean"] == pytest.approx(eps / std, rel=1e-4)
    settings = numbers["attack"]
    assert (settings["attack"], settings["steps"], settings["eps"]) == ("pgd-c", 20, eps)
    assert settings["model"] == (str(runs("x")) if source else "D(x - G(x))")


def test_an_interrupted_part_goes_on(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"images": 30, "batch_size": 10, "steps": 2}
    context = context_of("cdvae", **request)
    by, seen = attacked(context), []

    def stopping(x: torch.Tensor, y: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(positions.tolist())
        return by.attack(x, y, positions)

    def counting(x: torch.Tensor, y: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.append(positions.tolist())
        return by.attack(x, y, positions)

    monkeypatch.setattr(module, "attacked", lambda context: replace(by, attack=stopping))
    with pytest.raises(KeyboardInterrupt):
        PART.make(context)
    monkeypatch.setattr(module, "attacked", lambda context: replace(by, attack=counting))
    resumed = PART.make(context)
    # Each batch once: what was attacked before is not attacked again.
    assert len(seen) == 3
    assert len(set(map(tuple, seen))) == 3
    assert not (context.folder / "cdvae-norms.partial").exists()
    monkeypatch.undo()
    assert resumed.numbers == PART.make(context_of("cdvae", **request)).numbers
    assert resumed.numbers["attack"]["steps"] == 2


def test_a_source_of_other_classes_is_refused(context_of) -> None:
    with pytest.raises(
        UserError, match=r"--source .*: it gives \[1, 3\] for one image, expected the 10 logits"
    ):
        PART.make(context_of("cdvae", images=4, source=f"{__file__}:three_classes"))


def three_classes() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
