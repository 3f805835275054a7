"""Rates of a detector on scores written by hand."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from robustfast.evaluation.auroc import auroc
from robustfast.evaluation.rfd.judge import judged_clean
from robustfast.evaluation.rfd.rates import rates


def test_rates_by_hand() -> None:
    clean, adversarial = torch.tensor([2.0, 0.5, -1.0, 3.0]), torch.tensor([-2.0, 0.5, -3.0])
    found = rates(clean, adversarial)
    # Adversarial is what is looked for; two of three are found, and three of four clean ones pass.
    assert found["tpr"] == pytest.approx(2 / 3)
    assert found["tnr"] == pytest.approx(3 / 4)
    # Pairs with the clean one above: 4 for -2 and for -3; 2 for 0.5, and a half of the pair level with it.
    assert found["auroc"] == pytest.approx((4 + 4 + 2.5) / 12)
    # A sigmoid of a half is not below a half.
    assert judged_clean(torch.tensor([0.0, -1e-6])).tolist() == [True, False]


def test_the_area_is_sklearns() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(-3, 6, (57,), generator=generator).float()
    adversarial = torch.randint(-6, 3, (31,), generator=generator).float()
    truth = [0] * 57 + [1] * 31
    expected = roc_auc_score(truth, -torch.cat([clean, adversarial]).numpy())
    assert auroc(clean, adversarial) == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.ones(3), -torch.ones(4)) == 1.0
    assert auroc(-torch.ones(3), torch.ones(4)) == 0.0
    with pytest.raises(ValueError, match="3 clean and 0 adversarial images"):
        auroc(torch.ones(3), torch.ones(0))
