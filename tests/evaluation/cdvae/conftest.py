"""Runs of CD-VAE on the digits, trained for a moment: G with D, and a classifier of each other part."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from robustfast.data import load
from robustfast.evaluation.parts import PartContext, Request
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """train(preset, name, field=...) -> the folder of a run of a few epochs."""

    def run(preset: str, name: str, **fields: Any) -> Path:
        small = {"epochs": 4, "validate_every": 0, "tensorboard": False, "device": "cpu", "threads": 1}
        out = tmp_path_factory.mktemp("runs") / name
        return fit(replace(PRESETS[preset], **{**small, "out": out, **fields}))

    return run


@pytest.fixture(scope="session")
def cdvae_run(train: Callable[..., Path]) -> Path:
    """The folder of a run of G and D."""
    return train("digits-cdvae", "cdvae")


@pytest.fixture(scope="session")
def g_run(train: Callable[..., Path], cdvae_run: Path) -> Path:
    """That of D_G, on G(x) of `cdvae_run`."""
    return train("digits-cdvae-g", "d-g", start_from=(str(cdvae_run),))


@pytest.fixture(scope="session")
def x_run(train: Callable[..., Path]) -> Path:
    """That of D-hat, on x."""
    return train("digits-cdvae-x", "d-hat")


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """runs("cdvae"), runs("g") or runs("x") -> the folder of the run, which is trained when it is first asked for."""
    return lambda name: request.getfixturevalue(f"{name}_run")


@pytest.fixture
def context_of(runs: Callable[[str], Path]) -> Callable[..., PartContext]:
    """context_of("cdvae", images=N, source="...", ...) -> what a part of the protocol works with on that run."""

    def build(name: str, **request: Any) -> PartContext:
        path = runs(name)
        run = load_run(path, device="cpu")
        return PartContext(
            path, run, "cdvae", Request(**{"device": "cpu", **request}), load("digits", "test")
        )

    return build


@pytest.fixture
def printed() -> Callable[[Table], str]:
    """printed(table) -> it on 80 columns, as wide as a console is behind a pipe; nothing may be cut off there."""

    def text(table: Table) -> str:
        file = io.StringIO()
        Console(file=file, width=80).print(table)
        assert "…" not in file.getvalue(), file.getvalue()
        return file.getvalue()

    return text
