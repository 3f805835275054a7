"""The radii at which CD-VAE's runs are attacked."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from robustfast.attacks.config import AttackConfig
from robustfast.data import DATASETS
from robustfast.errors import UserError
from robustfast.evaluation.cdvae.threat import L2, l2, linf, noise_level
from robustfast.training.presets import PRESETS


def run_of(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(config=replace(PRESETS["digits-st"], **fields))


def test_the_papers_radii_for_colour_images() -> None:
    for dataset in ("cifar10", "restricted_imagenet"):
        run = run_of(dataset=dataset, attack=AttackConfig(eps=8 / 255))
        assert (linf(run), l2(run)) == (8 / 255, 1.0)


def test_a_runs_own_radius_counts_for_its_own_norm_alone() -> None:
    of_linf = run_of(dataset="cifar10", attack=AttackConfig(eps=0.02))
    assert (linf(of_linf), l2(of_linf)) == (0.02, 1.0)
    of_l2 = run_of(dataset="digits", attack=AttackConfig(eps=0.7, norm="l2"))
    assert (linf(of_l2), l2(of_l2)) == (0.1, 0.7)


def test_every_data_set_has_radii() -> None:
    assert set(L2) == set(DATASETS)


def test_an_unknown_data_set_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^unknown data set 'faces'"):
        l2(run_of(dataset="faces"))


def test_noise_is_the_codes() -> None:
    assert noise_level("fgsm") == 0.0625
    assert {noise_level(name) for name in ("bim", "cw", "pgd-linf", "pgd-l2")} == {0.065}
