"""A run of RFD on the digits, trained for a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robustfast.data import load
from robustfast.evaluation.parts import PartContext, Request
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS
from robustfast.training.run_folder import load_run


@pytest.fixture(scope="session")
def rfd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch, two steps, with attacks of one step."""
    config = PRESETS["digits-rfd"]
    return fit(
        replace(
            config,
            epochs=1,
            batch_size=719,
            attack=replace(config.attack, steps=1),
            objective=replace(config.objective, steps=(1,)),
            validate_every=0,
            tensorboard=False,
            device="cpu",
            out=tmp_path_factory.mktemp("runs") / "rfd",
        )
    )


@pytest.fixture(scope="session")
def figure_context(rfd_run: Path) -> Callable[..., PartContext]:
    """figure_context(images=N) -> what a part of the protocol works with on so many images of the run."""

    def build(**request: object) -> PartContext:
        run = load_run(rfd_run, device="cpu")
        return PartContext(rfd_run, run, "rfd", Request(**request), load("digits", "test"))  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def um_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the undefended model of one epoch, twelve steps."""
    return fit(
        replace(
            PRESETS["digits-rfd-um"],
            epochs=1,
            validate_every=0,
            tensorboard=False,
            device="cpu",
            out=tmp_path_factory.mktemp("runs") / "um",
        )
    )


@pytest.fixture(scope="session")
def runs(rfd_run: Path, um_run: Path) -> Callable[[str], Path]:
    """runs("rfd") or runs("um") -> the folder of the run."""
    return {"rfd": rfd_run, "um": um_run}.__getitem__


@pytest.fixture
def context_of(runs: Callable[[str], Path]) -> Callable[..., PartContext]:
    """context_of("rfd" or "um", images=N, ...) -> what a part of the protocol works with on that run."""

    def build(method: str, **request: object) -> PartContext:
        path = runs(method)
        run = load_run(path, device="cpu")
        return PartContext(path, run, "rfd", Request(**{"device": "cpu", **request}), load("digits", "test"))  # type: ignore[arg-type]

    return build
