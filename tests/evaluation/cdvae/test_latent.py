"""Correlation of codes: scipy's, from batches, and what is drawn of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from robustfast.attacks import PGDC
from robustfast.errors import UserError
from robustfast.evaluation.cdvae import latent
from robustfast.evaluation.cdvae.latent import PART, PairedMoments, p_values
from robustfast.evaluation.cdvae.threat import linf
from robustfast.visualization.correlation_histogram import draw_correlation_histogram


def _moments(one: torch.Tensor, other: torch.Tensor, sizes: list[int]) -> PairedMoments:
    found = PairedMoments()
    for pair in zip(one.split(sizes), other.split(sizes), strict=True):
        found.update(*pair)
    return found


def test_correlation_and_p_values_are_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(50, 7, generator=draw, dtype=torch.float64)
    # From no correlation to nearly all, about means far from zero.
    share = torch.linspace(0, 1, 7, dtype=torch.float64)
    other = share * one + 0.2 * torch.randn(50, 7, generator=draw, dtype=torch.float64)
    one, other = one + 1e6, other - 1e5
    found = _moments(one, other, [1, 30, 19])
    expected = stats.pearsonr(one.numpy(), other.numpy(), axis=0)
    assert found.count == 50
    assert found.correlation().numpy() == pytest.approx(expected.statistic, abs=1e-9)
    assert p_values(found.correlation(), 50) == pytest.approx(expected.pvalue, rel=1e-5)


def test_constant_entries_have_no_correlation() -> None:
    one = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    one[:, 1] = 0.1
    r = _moments(one, one, [5, 15]).correlation()
    assert r[[0, 2]].tolist() == pytest.approx([1.0, 1.0])
    assert r[1].isnan()
    assert math.isnan(p_values(r, 20)[1])
    assert p_values(r, 20)[0] == pytest.approx(0)


def test_the_numbers_are_those_of_a_direct_computation(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(counts, edges, path, **words):
        drawn.append((counts, edges, words))
        return path

    monkeypatch.setattr(latent, "correlation_histogram", keep)
    context = context_of("cdvae", images=40, batch_size=13)
    numbers = PART.make(context).numbers
    model = context.run.model
    codes: list[list[torch.Tensor]] = [[], []]
    for x, y, positions in context.batches():
        x_adv = PGDC(model.way("n"), linf(context.run), steps=20)(x, y, positions)
        with torch.no_grad():
            for kept, images in zip(codes, (x, x_adv), strict=True):
                kept.append(model.split(images).latent.double())
    expected = stats.pearsonr(*(torch.cat(kept).numpy() for kept in codes), axis=0)
    assert numbers["correlation"] == pytest.approx(expected.statistic.tolist(), abs=1e-6)
    assert numbers["p"] == pytest.approx(expected.pvalue.tolist(), rel=1e-3)
    assert numbers["mean"] == pytest.approx(expected.statistic.mean(), abs=1e-6)
    assert numbers["significant"] == (expected.pvalue < 0.05).mean()
    assert (numbers["dimensions"], numbers["undefined"], numbers["images"]) == (64, 0, 40)
    ((counts, edges, words),) = drawn
    assert counts == np.histogram(expected.statistic, bins=edges)[0].tolist()
    assert sum(counts) == 64
    assert words["mean"] == numbers["mean"]


def test_long_codes_are_listed_in_part(context_of, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of("cdvae", images=10, steps=1)
    whole = PART.make(context).numbers
    monkeypatch.setattr(latent, "LISTED", 16)
    part = PART.make(context).numbers
    assert part["correlation"] == whole["correlation"][::4]
    assert part["p"] == whole["p"][::4]
    assert {**part, "correlation": 0, "p": 0} == {**whole, "correlation": 0, "p": 0}


def test_too_few_images(context_of) -> None:
    with pytest.raises(UserError, match="--images 2: a correlation has a p-value from 3 images on"):
        PART.make(context_of("cdvae", images=2))


def test_bars_on_the_page_are_the_counts() -> None:
    figure = draw_correlation_histogram([3, 1], [0.0, 0.5, 1.0], mean=0.4, significant=0.75, level=0.05)
    (axes,) = figure.axes
    assert axes.patches[0].get_data().values.tolist() == [3, 1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean 0.400", "p < 0.05: 75.00 %"]
    with pytest.raises(ValueError, match="an edge more than counts"):
        draw_correlation_histogram([3], [0.0, 0.5, 1.0], mean=0.0, significant=0.0, level=0.05)
