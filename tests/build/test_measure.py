"""What benchmarks count and time by: FLOPs against the published figures, roofs, calls inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import measure
import pytest
import torch
from measure import forward_flops, graphed_seconds, interleaved, matrix_peak

from robustfast.attacks import cuda_graph
from robustfast.models import backbone


@pytest.mark.parametrize(
    ("name", "gigaflops"), [("preact_resnet18", 1.11), ("wide_resnet34_10", 13.3), ("wide_resnet28_10", 10.5)]
)
def test_flops_of_a_pass_are_the_published_ones(name: str, gigaflops: float) -> None:
    with torch.device("meta"):
        network = backbone(name, in_channels=3)
    assert forward_flops(network, (1, 3, 32, 32)) / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_counting_leaves_the_network_as_it_is_and_grows_with_the_batch() -> None:
    network = backbone("small_cnn", in_channels=1)
    assert network.training
    one, eight = (forward_flops(network, (batch, 1, 28, 28)) for batch in (1, 8))
    assert eight == 8 * one > 0
    assert network.training
    assert all(not parameter.is_meta for parameter in network.parameters())


def test_a_convolution_and_a_linear_map_by_hand() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten())
    network.append(torch.nn.Linear(5 * 4 * 4, 7))
    assert forward_flops(network, (2, 3, 4, 4)) == 2 * 2 * (5 * 4 * 4 * 3 * 9 + 5 * 4 * 4 * 7)


def test_the_matrix_peak_is_above_what_a_small_product_reaches() -> None:
    a = torch.randn(16, 16)
    small = 2 * 16**3 / interleaved({"small": lambda: a @ a}, seconds=0.01)["small"].median
    assert matrix_peak(torch.device("cpu"), torch.float32) > 2 * small


def test_a_short_call_fills_its_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    past: list[float] = []  # milliseconds
    monkeypatch.setattr(measure, "clock", lambda: sum(past) / 1000)
    for sample, calls in ((1e-3, 1), (2e-2, 20)):
        found = interleaved({"a": lambda: past.append(1)}, seconds=0.0, sample=sample)["a"]
        assert (found.calls, found.rounds) == (calls, 5)
        assert found.median == pytest.approx(1e-3)


class FakeGraph:
    """A graph whose replay runs what was recorded."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.replay = run


def test_calls_in_a_graph_are_divided_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "side")
    monkeypatch.setattr(cuda_graph, "on_stream", lambda stream: nullcontext())
    monkeypatch.setattr(cuda_graph, "record", lambda run, stream: (FakeGraph(run), run()))
    past: list[float] = []  # milliseconds
    monkeypatch.setattr(measure, "clock", lambda: sum(past) / 1000)
    assert graphed_seconds(lambda: past.append(1), calls=10) == pytest.approx(1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU there is no graph")
def test_without_a_gpu_no_time_is_claimed() -> None:
    assert graphed_seconds(lambda: None) is None


@pytest.mark.gpu
def test_a_call_in_a_graph_takes_less_than_one_launched_by_the_host() -> None:
    x = torch.zeros(1024, device="cuda")
    eager = interleaved({"add": lambda: x.add_(1)}, seconds=0.1)["add"].median
    inside = graphed_seconds(lambda: x.add_(1))
    assert inside is not None
    assert 0 < inside < 2 * eager
