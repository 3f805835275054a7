"""What a part of AFD's protocol works with: small networks that were never trained, on a few digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustfast.data import load
from robustfast.evaluation.parts import PartContext, Request
from robustfast.models import OneWay
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import Run

MakeRun = Callable[..., Run]
MakeContext = Callable[..., PartContext]


def _backbone() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU())
    module.features = 12  # type: ignore[assignment]
    return module


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """untrained(NAME, seed=0, **fields of the configuration) -> a run in a folder of that name, with fresh weights."""

    def make(name: str, *, seed: int = 0, **fields: object) -> Run:
        config = replace(PRESETS["digits-afd-wgan"], batch_size=16, **fields)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = OneWay(_backbone, num_classes=10, unit_norm=config.network == "unit_norm")
        path = tmp_path_factory.mktemp("runs") / name
        path.mkdir()
        return Run(path, config, model.eval(), 0, path / "none.pt")

    return make


@pytest.fixture(scope="session")
def context_of() -> MakeContext:
    """context_of(RUN, against={LABEL: RUN}, **fields of the request) -> the context of a part."""

    def make(run: Run, against: Mapping[str, Run] | None = None, **request: object) -> PartContext:
        split = load(run.config.dataset, "test")
        context = PartContext(run.path, run, "afd", Request(device="cpu", **request), split)  # type: ignore[arg-type]
        object.__setattr__(context, "others", lambda: dict(against or {}))
        return context

    return make
