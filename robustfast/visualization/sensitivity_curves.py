"""How far features move under attack, a line for each run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from robustfast.visualization.radii import radius_unit
from robustfast.visualization.style import SERIES, new_figure, plain, save

__all__ = ["draw_sensitivity_curves", "sensitivity_curves"]

_MARKS = ("o", "s", "^", "D", "v", "P")


def sensitivity_curves(runs: Mapping[str, Mapping[str, Any]], norm: str, path: Path, *, title: str) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_sensitivity_curves(runs, norm)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_sensitivity_curves(runs: Mapping[str, Mapping[str, Any]], norm: str) -> Figure:
    """Median over the images with the standard deviation as bars (AFD, figure A4).

    Args:
        runs: label to `eps`, `median` and `std` of equal length.
        norm: of the ball that eps is the radius of.
    """
    figure, axes = new_figure(6.4, 4.2)
    unit, label = radius_unit([value for run in runs.values() for value in run["eps"]], norm)
    for place, (name, run) in enumerate(runs.items()):
        # Side by side, so that no bar hides another one.
        spread = max(run["eps"]) * unit * 0.006 * (place - (len(runs) - 1) / 2)
        axes.errorbar(
            [value * unit + spread for value in run["eps"]],
            run["median"],
            run["std"],
            color=SERIES[place % len(SERIES)],
            marker=_MARKS[place % len(_MARKS)],
            markersize=4,
            linewidth=1.6,
            elinewidth=0.9,
            capsize=2,
            label=plain(name),
        )
    axes.set_xlabel(label)
    axes.set_ylabel("feature sensitivity, median")
    axes.set_ylim(bottom=0)
    figure.legend(
        *axes.get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower center",
        ncols=min(len(runs), 4),
    )
    return figure
