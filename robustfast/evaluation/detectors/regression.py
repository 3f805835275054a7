"""From scores of several layers to one: a logistic regression on a tenth of the images, judged on the others.

The protocol of Lee et al. 2018 (deep_Mahalanobis), which CD-VAE follows: of each kind of image (clean, noisy,
adversarial) the first tenth in data set order is the pool, and of the pool the first half fits the regression and the
second half chooses the detector's setting. The rest is the test.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors.metrics import auroc, metrics

__all__ = ["FOLDS", "Outcome", "Samples", "Split", "known_attack", "regression", "split", "unseen_attack"]

FOLDS = 5


@dataclass(frozen=True)
class Samples:
    """Scores of the images that one attack turned, [N, layers] each, in data set order; row i is of the same image.

    Attributes:
        clean, noisy, adversarial: of the image, of the image with noise, of the adversarial image.
        positions: of the images in their data set, int64 [N]; None where unknown.

    Raises:
        UserError: shapes that differ.
    """

    clean: Tensor
    noisy: Tensor
    adversarial: Tensor
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.clean, self.noisy, self.adversarial)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise UserError(
                f"scores {shapes} of clean, noisy and adversarial images: expected [N, layers] thrice"
            )

    def __len__(self) -> int:
        return len(self.clean)

    def rows(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of clean and noisy images [2n, layers], and of adversarial ones [n, layers], at these rows."""
        return torch.cat([self.clean[own], self.noisy[own]]), self.adversarial[own]


@dataclass(frozen=True)
class Split:
    """Rows that fit the regression, that choose the setting, and that are tested: int64."""

    fit: Tensor
    validation: Tensor
    test: Tensor


def split(count: int, pool: float = 0.1) -> Split:
    """The rows of `count` images: of the first share `pool` a half to fit and a half to validate, the rest to test.

    Raises:
        UserError: too few images for five folds in the half that fits, or none to test.
    """
    size = int(count * pool)
    half = size // 2
    if half < FOLDS or size >= count:
        raise UserError(
            f"{count} images with a pool of {pool:g}: expected {FOLDS} or more in the half that fits it, and "
            "some to test; take more images or another pool"
        )
    rows = torch.arange(count)
    return Split(rows[:half], rows[half:size], rows[size:])


@dataclass(frozen=True)
class Outcome:
    """What came of a protocol.

    Attributes:
        metrics: of the test images; see `robustfast.evaluation.detectors.metrics.metrics`.
        setting: which of the candidates was chosen.
        validation: AUROC of each candidate on the images that chose, by setting.
        kept: images that were scored, of which the test is a part.
        model: the fitted regression.
    """

    metrics: dict[str, float]
    setting: float
    validation: dict[float, float]
    kept: int
    model: Pipeline

    def as_dict(self) -> dict[str, Any]:
        """The metrics with "kept" and "setting", for JSON."""
        return {**self.metrics, "kept": self.kept, "setting": self.setting}


def regression(clean: Tensor, adversarial: Tensor) -> Pipeline:
    """A logistic regression of adversarial (1) against clean (0) images: C from ten by five folds, lbfgs, l2.

    Each layer's scores are standardised first, by these samples: scores of 1e3 beside scores of 1 would make lbfgs end
    early and the penalty fall on the small ones alone.

    Args:
        clean, adversarial: scores [N, layers], [M, layers].
    """
    kwargs: dict[str, Any] = {"scoring": "accuracy"}
    parameters = inspect.signature(LogisticRegressionCV).parameters
    if "use_legacy_attributes" in parameters:  # from 1.8 on, where the penalty is named by its share of l1
        kwargs |= {"l1_ratios": (0.0,), "use_legacy_attributes": False}
    model = LogisticRegressionCV(Cs=10, cv=FOLDS, solver="lbfgs", max_iter=1000, **kwargs)
    truth = np.repeat([0, 1], [len(clean), len(adversarial)])
    return make_pipeline(StandardScaler(), model).fit(_matrix(clean, adversarial), truth)


def scores(model: Pipeline, rows: Tensor) -> Tensor:
    """Minus the regression's log odds of adversarial, float64 [N]: ranks as -P(adversarial) does, without its ties at 0
    and 1."""
    return -torch.from_numpy(model.decision_function(_matrix(rows)))


def known_attack(candidates: Mapping[float, Samples], *, pool: float = 0.1) -> Outcome:
    """Fitted, chosen and tested on images of one attack.

    Args:
        candidates: setting of the detector (m, k or bandwidth) to scores; one or more.
        pool: share of the images that is not tested.

    Raises:
        UserError: no candidate, or too few images.
    """
    return _judge(candidates, candidates, pool)


def unseen_attack(
    seen: Mapping[float, Samples], unseen: Mapping[float, Samples], *, pool: float = 0.1
) -> Outcome:
    """Fitted and chosen on images of one attack, tested on those of another.

    Tested are the images of `unseen` beyond its own first tenth, without those (where positions are given) that lie in
    the pool of `seen`.

    Raises:
        UserError: no candidate, too few images, or a setting that only one of both has.
    """
    if set(seen) != set(unseen):
        raise UserError(
            f"settings {sorted(seen)} of the attack seen and {sorted(unseen)} of the other: expected the same"
        )
    return _judge(seen, unseen, pool)


def _judge(seen: Mapping[float, Samples], tested: Mapping[float, Samples], pool: float) -> Outcome:
    if not seen:
        raise UserError("no candidate: expected scores under one setting or more")
    models, validation = {}, {}
    for setting, samples in seen.items():
        own = split(len(samples), pool)
        models[setting] = regression(*samples.rows(own.fit))
        validation[setting] = auroc(*(scores(models[setting], rows) for rows in samples.rows(own.validation)))
    best = max(validation, key=validation.__getitem__)
    rows = _tested(seen[best], tested[best], pool)
    found = metrics(*(scores(models[best], part) for part in tested[best].rows(rows)))
    return Outcome(found, best, validation, len(tested[best]), models[best])


def _tested(seen: Samples, tested: Samples, pool: float) -> Tensor:
    rows = split(len(tested), pool).test
    if seen is tested or seen.positions is None or tested.positions is None:
        return rows
    own = split(len(seen), pool)
    used = seen.positions[torch.cat([own.fit, own.validation])]
    return rows[~torch.isin(tested.positions[rows], used)]


def _matrix(*parts: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return torch.cat(parts).detach().double().cpu().numpy()
