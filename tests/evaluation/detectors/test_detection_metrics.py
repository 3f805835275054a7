"""Rates of detection by hand and against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor

from robustfast.evaluation.detectors.metrics import aupr, auroc, detection_accuracy, metrics, tnr_at_tpr


def scores(seed: int, ties: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean, adversarial = (
        torch.randn(73, generator=generator) + 1,
        torch.randn(41, generator=generator),
    )
    return ((4 * clean).round(), (4 * adversarial).round()) if ties else (clean, adversarial)


def test_tnr_by_hand() -> None:
    clean = torch.arange(1.0, 21)
    # 19 of 20 are kept from 2 on; what is below is rejected, what is level is not.
    assert tnr_at_tpr(clean, torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0])) == pytest.approx(3 / 5)
    assert tnr_at_tpr(clean, torch.tensor([1.5]), tpr=1.0) == 0
    assert tnr_at_tpr(clean, torch.tensor([0.5]), tpr=1.0) == 1
    # Of 10, shares of 0.9 and 1 are as near to 0.95: the larger one.
    assert tnr_at_tpr(torch.arange(1.0, 11), torch.tensor([0.5, 1.5])) == 0.5
    # Of ties all are kept or none: 1 of 4 and 4 of 4 can be; 0.6 is nearer to 0.25.
    tied = torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert tnr_at_tpr(tied, torch.tensor([0.0, 1.0, 1.5]), tpr=0.6) == pytest.approx(1)
    assert tnr_at_tpr(tied, torch.tensor([0.0, 1.0, 1.5]), tpr=0.7) == pytest.approx(1 / 3)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_all_thresholds_tried(seed: int, ties: bool) -> None:
    clean, adversarial = scores(seed, ties)
    truth = [1] * len(clean) + [0] * len(adversarial)
    together = torch.cat([clean, adversarial])
    tried = []
    for threshold in clean.unique():
        kept, rejected = clean >= threshold, adversarial < threshold
        share = kept.double().mean().item()
        tried.append((-round(abs(share - 0.95), 12), share, rejected.double().mean().item()))
    assert tnr_at_tpr(clean, adversarial) == pytest.approx(max(tried)[2])
    accuracy = max(balanced_accuracy_score(truth, together >= threshold) for threshold in together)
    assert detection_accuracy(clean, adversarial) == pytest.approx(max(accuracy, 0.5))
    assert auroc(clean, adversarial) == pytest.approx(roc_auc_score(truth, together))
    assert aupr(clean, adversarial) == pytest.approx(average_precision_score(truth, together))
    turned = [1 - value for value in truth]
    assert aupr(clean, adversarial, positive="adversarial") == pytest.approx(
        average_precision_score(turned, -together)
    )


def test_the_extremes() -> None:
    clean, adversarial = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 2.5])
    assert metrics(clean, adversarial) == {"tnr": 1, "auroc": 1, "dtacc": 1, "aupr_in": 1, "aupr_out": 1}
    worst = metrics(-clean, -adversarial)
    assert (worst["tnr"], worst["auroc"], worst["dtacc"]) == (0, 0, 0.5)
    same = metrics(torch.zeros(5), torch.zeros(15))
    assert (same["auroc"], same["dtacc"]) == (0.5, 0.5)
    assert (same["aupr_in"], same["aupr_out"]) == (0.25, 0.75)


def test_what_cannot_be_judged() -> None:
    some, none = torch.ones(3), torch.ones(0)
    for metric in (tnr_at_tpr, detection_accuracy, aupr, auroc, metrics):
        with pytest.raises(ValueError, match="3 clean and 0 adversarial images"):
            metric(some, none)
    for metric in (tnr_at_tpr, detection_accuracy, aupr, metrics):
        with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
            metric(some, torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="tpr 0"):
        tnr_at_tpr(some, some, tpr=0)
    with pytest.raises(ValueError, match="positive 'noisy'"):
        aupr(some, some, positive="noisy")


@pytest.mark.parametrize("of", [tnr_at_tpr, auroc, detection_accuracy, aupr, metrics])
def test_scores_of_several_layers_are_not_pooled(of: Callable[..., Any]) -> None:
    wide, plain = torch.rand(5, 2), torch.rand(5)
    for clean, adversarial in ((wide, wide), (plain, wide), (wide[0, 0], plain)):
        with pytest.raises(ValueError, match=r"expected \[N\], one for each image; .* pick a column"):
            of(clean, adversarial)
