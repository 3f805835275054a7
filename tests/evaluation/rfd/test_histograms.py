"""Histograms of the domain-specific features: counted right, and drawn as the file says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustfast.evaluation.rfd import histograms
from robustfast.evaluation.rfd.histograms import BINS, PART, counts, overlap
from robustfast.visualization.histogram_pairs import HistogramPair, draw_histogram_pairs


def test_counts_by_hand() -> None:
    edges = torch.tensor([0.0, 1.0, 2.0, 4.0])
    values = torch.tensor([[0.0, 0.5, 1.0], [1.5, 3.0, 4.0]])
    assert counts(values, edges).tolist() == [2, 2, 2]


def test_counts_are_numpys() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).relu()
    edges = torch.linspace(0, values.max().item(), 51, dtype=torch.float64)
    expected, _ = np.histogram(values.double().numpy(), edges.numpy())
    assert counts(values, edges).tolist() == expected.tolist()


def test_overlap_is_the_area_that_both_share() -> None:
    one, other = torch.tensor([3, 1, 0]), torch.tensor([0, 4, 4])
    assert overlap(one, other) == pytest.approx(0.25)
    assert overlap(one, 2 * one) == pytest.approx(1.0)


def test_the_figure_shows_what_the_file_says(figure_context, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def keep(pairs, edges, path, *, title):
        drawn.append((pairs, edges))
        return path

    monkeypatch.setattr(histograms, "histogram_pairs", keep)
    context = figure_context(images=20)
    result = PART.make(context)
    ((pairs, edges),) = drawn
    numbers = result.numbers
    assert edges == numbers["edges"]
    assert len(edges) == BINS + 1 == 51
    assert [(p.heading, p.clean, p.attacked) for p in pairs] == [
        (h["name"], h["clean"], h["adversarial"]) for h in numbers["histograms"]
    ]
    everything, *sampled = numbers["histograms"]
    assert len(sampled) == 3
    assert sum(everything["clean"]) == sum(everything["adversarial"]) == 20 * numbers["features"]
    assert all(sum(one["clean"]) == numbers["features"] for one in sampled)
    # Of the images themselves, once more from scratch.
    x, _, positions = next(context.batches())
    with torch.no_grad():
        z = context.run.model.encode(x, "d")["d"]
    assert positions.tolist() == [k * len(context.split) // 20 for k in range(20)]
    assert everything["clean"] == counts(z, torch.tensor(edges)).tolist()
    assert everything["clean"] != everything["adversarial"]


def test_steps_on_the_page_are_the_shares() -> None:
    figure = draw_histogram_pairs([HistogramPair("a", [3, 1], [0, 8])], [0.0, 1.0, 2.0])
    (axes,) = figure.axes
    lines = [patch.get_data().values.tolist() for patch in axes.patches]
    assert lines == [[75.0, 25.0], [75.0, 25.0], [0.0, 100.0], [0.0, 100.0]]
    with pytest.raises(ValueError, match="of 2 counts"):
        draw_histogram_pairs([HistogramPair("a", [3], [0, 8])], [0.0, 1.0, 2.0])
