"""Evaluation documents written by hand, for the tests of what reads them, and runs for those of what evaluates them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest

from robustfast.evaluation.document import assemble
from robustfast.training.fit import fit
from robustfast.training.presets import PRESETS

DETECTION = ("tpr", "fpr", "balanced_accuracy", "raw", "calibrated")


def _record(name: str, r: float | None, n: float | None) -> dict:
    both = r is not None and n is not None
    gap = r - n if both else None
    return {
        "attack": {"name": name, "norm": "linf", "eps": 0.1, "step_size": 0.0125, "steps": 20},
        "images": 4,
        "adversarial": {"r": r, "n": n, "dia": gap},
        # Unlike the numbers above, so that a table which takes the wrong ones shows it.
        "standard_way": {
            "s": 0.0625 if both else None,
            "r": r / 2 if both else None,
            "n": n / 2 if both else None,
            "dia": gap / 2 if both else None,
        },
        "detection": dict(zip(DETECTION, (0.75, 0.125, 0.8125, 0.5, 0.625), strict=True))
        if both
        else dict.fromkeys(DETECTION),
        "detection_adversarial": dict(zip(DETECTION, (0.75, None, None, 0.0625, 0.375), strict=True))
        if both
        else dict.fromkeys(DETECTION),
        "gradients": {"zero": {"r": 0}, "nonfinite": {"r": 0}},
    }


@pytest.fixture
def document() -> Callable[..., dict]:
    """document(ways, natural, {attack: (r, n)}) -> an evaluation with those numbers."""

    def build(ways: str, natural: dict, attacked: dict) -> dict:
        header = {
            "protocol": "aat",
            "dataset": "digits",
            "split": "test",
            "images": 4,
            "ways": ways,
            "natural": {"s": None, "r": None, "n": None, **natural},
        }
        return assemble(header, {name: _record(name, *values) for name, values in attacked.items()})

    return build


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one epoch of the digits: "at" adversarially trained, "nt" naturally."""
    folder = tmp_path_factory.mktemp("trained")
    # Of one seed they would be so alike that the images of one fool the other as well as its own.
    presets = {"at": PRESETS["digits-afd-at"], "nt": replace(PRESETS["digits-afd-nt"], seed=1)}
    return {
        name: fit(
            replace(
                config,
                epochs=1,
                batch_size=64,
                attack=replace(config.attack, steps=1),
                validate_every=0,
                tensorboard=False,
                device="cpu",
                out=folder / name,
            )
        )
        for name, config in presets.items()
    }


@pytest.fixture
def runs(trained: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """`trained`, each a copy to write into."""
    return {name: Path(copytree(path, tmp_path / name)) for name, path in trained.items()}
