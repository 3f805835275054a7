"""Several processes draw, attack and compute what one alone would, each its part."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from warm import Warm

pytestmark = pytest.mark.skipif(
    not (hasattr(os, "fork") and torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="the processes are forked and talk over gloo, and this system has one of them not",
)


@pytest.fixture(scope="module")
def got(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """Number of processes -> what each of them got."""
    folder = tmp_path_factory.mktemp("got")
    program = Path(__file__).with_name("several_processes.py")
    done = warm.run(str(program), str(folder), timeout=600)
    assert done.returncode == 0, done.stderr
    return {size: [torch.load(folder / f"{rank}-of-{size}.pt") for rank in range(size)] for size in (1, 2, 4)}


@pytest.fixture
def one(got: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    return got[1][0]


@pytest.fixture(params=[2, 4])
def several(got: dict[int, list[dict[str, Any]]], request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return got[request.param]


def test_draws_are_the_same_bits(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    assert len(one["draws"]) == 8
    for number, batch in enumerate(one["draws"]):
        parts = [process["draws"][number] for process in several]
        for name in ("x", "y", "index", "linf", "l2"):
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
        assert sum(float(part["share"]) for part in parts) == 1 == float(batch["share"])


def test_attacks_are_the_same(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    assert list(one["attacks"]) == ["linf eval", "linf batch", "l2 eval", "l2 batch"]
    for name, by_way in one["attacks"].items():
        for way, expected in by_way.items():
            found = torch.cat([process["attacks"][name][way] for process in several])
            assert found.dtype == torch.float64
            assert float((found - expected).abs().max()) <= 1e-9


@pytest.mark.parametrize(("name", "tolerance"), [("aatpp", 1e-5), ("at in float64", 1e-12)])
def test_twenty_steps_follow_one_curve(
    one: dict[str, Any], several: list[dict[str, Any]], name: str, tolerance: float
) -> None:
    expected = one[name]
    assert len(expected["losses"]) == 20
    assert expected["losses"][-3:].mean() < 0.8 * expected["losses"][:3].mean()
    for process in several:
        found = process[name]
        assert float((found["losses"] - expected["losses"]).abs().max()) <= tolerance
        for key, value in expected["state"].items():
            assert float((found["state"][key] - value).abs().max()) <= tolerance


@pytest.mark.parametrize("name", ["aatpp", "at in float64", "local", "unequal"])
def test_processes_stay_bit_equal(several: list[dict[str, Any]], name: str) -> None:
    first, *others = (process[name]["state"] for process in several)
    assert any("running_var" in key for key in first)
    for other in others:
        assert all(torch.equal(other[key], value) for key, value in first.items())


def test_local_statistics_are_local(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    """Another curve, but near: the batch norms see a half or a quarter of each batch."""
    difference = (several[0]["local"]["losses"] - one["local"]["losses"]).abs()
    assert difference.max() > 1e-3
    assert several[0]["local"]["losses"][-3:].mean() < 0.8 * one["local"]["losses"][0]


def test_held_out_check_is_the_same(one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    assert all(process["check"] == one["check"] for process in several)
    assert set(one["check"]["natural"]) == set("srn")
