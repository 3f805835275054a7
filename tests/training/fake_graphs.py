"""CUDA graphs of whole steps on a CPU, for tests of what is captured, when, and what happens around a replay."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from robustfast.training import whole_step
from robustfast.training.engine import Engine, Step


class FakeGraph:
    """A recording without a GPU. A replay runs the step on the static tensors, with what Python had decided then."""

    def __init__(self, engine: Engine, run: Callable[[], Step]) -> None:
        self.engine, self.run, self.replays = engine, run, 0
        self.frozen = engine.objective.epoch, engine.objective.progress
        model = engine.objective.model
        before = copy.deepcopy((model.state_dict(), engine.state_dict()))
        self.results = run()
        # A capture computes nothing.
        model.load_state_dict(before[0])
        engine.load_state_dict(before[1])

    def replay(self) -> None:
        self.replays += 1
        objective = self.engine.objective
        now = objective.epoch, objective.progress
        objective.epoch, objective.progress = self.frozen
        fresh = self.run()
        objective.epoch, objective.progress = now
        self.results.report.copy_(fresh.report)


def fake_graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """A GPU that is none, for each `WholeStep` made from now on; the graphs recorded, in order."""
    engines: list[Engine] = []
    graphs: list[FakeGraph] = []

    def record(run: Callable[[], Step], stream: object) -> tuple[FakeGraph, Step]:
        graphs.append(FakeGraph(engines[-1], run))
        return graphs[-1], graphs[-1].results

    monkeypatch.setattr(whole_step, "record", record)
    monkeypatch.setattr(whole_step, "obstacle", engines.append)
    monkeypatch.setattr(whole_step, "on_stream", lambda stream: nullcontext())
    monkeypatch.setattr(whole_step, "waits", lambda: nullcontext([]))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side")
    return graphs
