"""How many entries of a vector have which correlation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, SERIES, new_figure, plain, save

__all__ = ["correlation_histogram", "draw_correlation_histogram"]


def correlation_histogram(
    counts: Sequence[int],
    edges: Sequence[float],
    path: Path,
    *,
    title: str,
    mean: float,
    significant: float,
    level: float,
) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
        ValueError: as `draw_correlation_histogram`.
    """
    figure = draw_correlation_histogram(counts, edges, mean=mean, significant=significant, level=level)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_correlation_histogram(
    counts: Sequence[int], edges: Sequence[float], *, mean: float, significant: float, level: float
) -> Figure:
    """The figure without a title.

    Args:
        counts: entries in each bin.
        edges: of the bins, one more than there are bins, within [-1, 1].
        mean: the mean correlation, marked by a line.
        significant: share of the entries whose p-value is below `level`, a fraction.
        level: see there.

    Raises:
        ValueError: no bins, or another number of counts than bins.
    """
    if not counts or len(counts) != len(edges) - 1:
        raise ValueError(f"{len(counts)} counts and {len(edges)} edges, expected an edge more than counts")
    figure, axes = new_figure()
    axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.35)
    axes.stairs(counts, edges, color=SERIES[0], linewidth=1.2)
    axes.axvline(mean, color=COLOURS["ink"], linewidth=1, linestyle="--", label=f"mean {mean:.3f}")
    axes.plot([], [], " ", label=f"p < {level:g}: {100 * significant:.2f} %")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("correlation (Pearson's r)")
    axes.set_ylabel("entries of the code")
    axes.legend(fontsize=9, frameon=False, loc="best")
    return figure
