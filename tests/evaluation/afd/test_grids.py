"""Radii as the paper prints them, areas as it computes them, and corrections that its own numbers ask for."""

from __future__ import annotations

import pytest
from torch import nn

from robustfast.data import DATASETS
from robustfast.errors import UserError
from robustfast.evaluation.afd.grids import FAMILIES, nominal, sweeps
from robustfast.evaluation.grids import area
from robustfast.training.presets import PRESETS

# Table A2; radii of pixels in 255ths. "n/255" there, so that nothing is taken from the code under test.
MNIST = (0, 0.1, 0.3, 0.35, 0.4, 0.45, 0.5)
PRINTED = {
    "mnist": {
        "fgsm": MNIST,
        "pgd-l1": (0, 10, 50, 100, 200),
        "pgd-l2": (0, 2, 5, 10),
        "pgd-linf": MNIST,
        "mim": (0, 0.1, 0.3, 0.5, 0.8, 1),
        "ddn": (0, 1, 2, 5),
        "deepfool": MNIST,
        "cw": (0, 0.5, 1, 1.5, 2),
        "aa": (0, 0.2, 0.3, 0.35),
    },
    "cifar10": {
        "fgsm": "0 2 4 8 16 32 64",
        "pgd-l1": (0, 10, 50, 100, 200),
        "pgd-l2": (0, 2, 5, 10),
        "pgd-linf": "0 2 4 8 16 32",
        "mim": "0 2 4 8 16 32",
        "ddn": (0, 2, 5, 10, 15),
        "deepfool": "0 2 4 8 16 32 64",
        "cw": (0, 0.5, 1, 1.5, 2),
        "aa": "0 8 16 32",
    },
    "tiny_imagenet": {
        "fgsm": "0 2 4 8 16 32",
        "pgd-l1": (0, 10, 50),
        "pgd-l2": (0, 2, 5),
        "pgd-linf": "0 2 4 8 16",
        "mim": "0 2 4 8 16",
        "ddn": (0, 0.2, 0.5, 1),
        "deepfool": "0 2 4 8 16",
        "cw": (0, 0.5, 1, 1.5, 2),
        "aa": "0 2 4 8",
    },
}
CORRECTED = {
    "mnist": {"pgd-l2": (0, 2, 5, 10, 20), "ddn": (0, 1, 2, 5, 10)},
    "cifar10": {"pgd-l1": (0, 10, 50), "ddn": (0, 2, 5, 10), "cw": (0, 1, 2, 5)},
    "tiny_imagenet": {"pgd-l2": (0, 2, 5, 10, 20)},
}
STEPS = {"mnist": 40, "cifar10": 20, "tiny_imagenet": 20}

# Natural training: clean accuracy (table 1), and areas (table 2).
CLEAN = {"mnist": 0.9884, "cifar10": 0.9489, "cifar100": 0.7676, "tiny_imagenet": 0.5830}
AREAS = {
    "mnist": {"pgd-l2": 0.06, "ddn": 0.09},
    "cifar10": {"pgd-l1": 0.17, "ddn": 0.10, "cw": 0.10},
    "cifar100": {"pgd-l1": 0.10, "ddn": 0.08, "cw": 0.08},
    "tiny_imagenet": {"pgd-l2": 0.03},
}


def radii(written: str | tuple[float, ...]) -> tuple[float, ...]:
    if isinstance(written, str):
        return tuple(int(number) / 255 for number in written.split())
    return tuple(map(float, written))


@pytest.mark.parametrize("dataset", PRINTED)
def test_every_grid_is_the_one_printed_and_the_one_corrected(dataset: str) -> None:
    found = sweeps(dataset)
    assert {name: grid.printed for name, grid in found.items()} == {
        name: radii(written) for name, written in PRINTED[dataset].items()
    }
    assert {name: grid.corrected for name, grid in found.items() if grid.corrected} == CORRECTED[dataset]
    for grid in found.values():
        assert grid.eps == tuple(sorted({*grid.printed, *(grid.corrected or ())}))


@pytest.mark.parametrize("dataset", PRINTED)
def test_settings_are_those_of_table_a2(dataset: str) -> None:
    settings = {
        name: {**grid.named.preset.settings, **grid.named.settings} for name, grid in sweeps(dataset).items()
    }
    assert settings["pgd-linf"]["steps"] == STEPS[dataset]
    assert {settings[name]["steps"] for name in ("pgd-l1", "pgd-l2", "deepfool")} == {50}
    assert {settings[name]["relative_step"] for name in ("pgd-l1", "pgd-l2")} == {0.025}
    assert (settings["cw"]["steps"], settings["cw"]["step_size"]) == (100, 0.05)
    assert (settings["mim"]["steps"], settings["ddn"]["steps"]) == (40, 100)
    if dataset == "mnist":
        assert settings["pgd-linf"]["relative_step"] == pytest.approx(0.0333, abs=1e-4)
    else:
        assert (settings["pgd-linf"]["step_size"], settings["pgd-linf"]["relative_step"]) == (2 / 255, None)


@pytest.mark.parametrize(
    ("dataset", "eps", "cw"),
    [
        ("mnist", 0.3, 1.0),
        ("cifar10", 8 / 255, 1.0),
        ("cifar100", 8 / 255, 1.0),
        ("tiny_imagenet", 0.015, 1.0),
        # Not in the paper: what the presets train at.
        ("digits", PRESETS["digits-afd-wgan"].attack.eps, 0.5),
    ],
)
def test_radii_of_table_1(dataset: str, eps: float, cw: float) -> None:
    assert {name: radius for name, (_, radius) in nominal(dataset).items()} == {
        "pgd": eps,
        "cw": cw,
        "aa": eps,
    }


@pytest.mark.parametrize(
    ("dataset", "lowest", "printed"), [("cifar10", 0.1186, 0.12), ("mnist", 0.2824, 0.28)]
)
def test_the_area_of_a_model_that_every_attack_breaks(dataset: str, lowest: float, printed: float) -> None:
    """AutoAttack on natural training: right on clean images alone, so the area is that of one triangle, which the
    paper reports rounded."""
    eps = sweeps(dataset)["aa"].printed
    found = area(eps, [CLEAN[dataset], 0, 0, 0])
    assert found == pytest.approx(lowest, abs=5e-5)
    assert round(found, 2) == printed


@pytest.mark.parametrize(("dataset", "name"), [(data, name) for data in AREAS for name in AREAS[data]])
def test_corrected_grids_allow_the_published_areas(dataset: str, name: str) -> None:
    """No area is smaller than that of the triangle under the first two points; rounding is worth half a percent."""
    grid, published = sweeps(dataset)[name], AREAS[dataset][name]
    assert grid.corrected is not None
    printed, corrected = (
        area(eps, [CLEAN[dataset], *[0] * (len(eps) - 1)]) for eps in (grid.printed, grid.corrected)
    )
    assert corrected <= published + 0.005
    # Where the printed grid allows it too, natural training would have to withstand more than it does.
    assert printed > published + 0.005 or abs(corrected - published) < abs(printed - published)


@pytest.mark.parametrize("dataset", FAMILIES)
def test_every_data_set_has_nine_attacks_that_can_be_built(dataset: str) -> None:
    model = nn.Flatten()
    found = sweeps(dataset)
    assert list(found) == ["pgd-linf", "pgd-l2", "pgd-l1", "fgsm", "mim", "ddn", "deepfool", "cw", "aa"]
    for name, grid in found.items():
        assert grid.printed[0] == 0
        assert grid.named.name == name
        built = grid.named.build(model, None if grid.named.minimal else grid.eps[-1])
        assert built.norm == grid.named.norm
        settings = grid.settings(model, seed=3)
        assert all(settings[key] == value for key, value in grid.named.settings.items())
        assert settings == {
            **{key: value for key, value in grid.named.as_json(built).items() if key != "eps"},
            "seed": 3,
        }
    for named, eps in nominal(dataset).values():
        named.build(model, eps)


def test_every_known_data_set_is_attacked_by_some_column() -> None:
    assert set(FAMILIES) == set(DATASETS)
    with pytest.raises(UserError, match="unknown data set 'cifar'; did you mean"):
        sweeps("cifar")
