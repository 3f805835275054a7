"""Two histograms over each other, clean and attacked, in a row of panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, SERIES, plain, save

__all__ = ["HistogramPair", "draw_histogram_pairs", "histogram_pairs"]


@dataclass(frozen=True)
class HistogramPair:
    """One panel: its heading, and how many values lie in each bin."""

    heading: str
    clean: Sequence[int]
    attacked: Sequence[int]


def histogram_pairs(
    pairs: Sequence[HistogramPair], edges: Sequence[float], path: Path, *, title: str
) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
        ValueError: as `draw_histogram_pairs`.
    """
    figure = draw_histogram_pairs(pairs, edges)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_histogram_pairs(pairs: Sequence[HistogramPair], edges: Sequence[float]) -> Figure:
    """The figure without a title: shares in percent of each histogram's own values, on a logarithmic axis, as most
    features are 0 after a ReLU.

    Args:
        pairs: the panels, from left to right.
        edges: of the bins, one more than there are bins.

    Raises:
        ValueError: no panels, or another number of counts than bins.
    """
    bins = len(edges) - 1
    if not pairs or any(len(counts) != bins for pair in pairs for counts in (pair.clean, pair.attacked)):
        raise ValueError(f"expected one panel or more of {bins} counts, one for each bin")
    figure = Figure(figsize=(0.6 + 2.6 * len(pairs), 3.1), layout="constrained")
    panels = figure.subplots(1, len(pairs), squeeze=False, sharex=True, sharey=True)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        for counts, colour, label in (
            (pair.clean, SERIES[0], "clean"),
            (pair.attacked, SERIES[1], "attacked"),
        ):
            whole = max(sum(counts), 1)
            shares = [100 * count / whole for count in counts]
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, edges, color=colour, linewidth=1.2, label=label)
        axes.set_title(plain(pair.heading), fontsize=9)
        axes.set_yscale("log")
        axes.set_xlabel("value of a feature", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("features (%)", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    return figure
