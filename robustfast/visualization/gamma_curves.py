"""What a weight of the class loss buys and costs: four curves over gamma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import SERIES, new_figure, percent_axis, plain, save

__all__ = ["draw_gamma_curves", "gamma_curves"]

_MARKS = ("o", "s", "^", "D")


def gamma_curves(
    gammas: Sequence[float], curves: Mapping[str, Sequence[float | None]], path: Path, *, title: str
) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_gamma_curves(gammas, curves)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_gamma_curves(gammas: Sequence[float], curves: Mapping[str, Sequence[float | None]]) -> Figure:
    """Figure 4 of CD-VAE: a line for each measure over gamma, on a logarithmic axis.

    Args:
        gammas: weights of the class loss, rising, none negative; 0 stands a decade below the smallest other one.
        curves: name to fractions, one for each gamma; None where one is not known.
    """
    figure, axes = new_figure(6.4, 4.2)
    positive = [gamma for gamma in gammas if gamma > 0]
    nothing = log10(min(positive)) - 1 if positive else 0.0
    places = [log10(gamma) if gamma > 0 else nothing for gamma in gammas]
    for number, (name, values) in enumerate(curves.items()):
        axes.plot(
            places,
            [float("nan") if value is None else 100 * value for value in values],
            color=SERIES[number % len(SERIES)],
            marker=_MARKS[number % len(_MARKS)],
            markersize=5,
            linewidth=1.6,
            label=plain(name),
            # A mark at 100 % is whole.
            clip_on=False,
        )
    axes.set_xticks(places, [f"{gamma:g}" for gamma in gammas])
    axes.set_xlabel("gamma, weight of the class loss")
    # Negative where a reconstruction is farther from the image than nothing at all would be.
    lowest = min(
        (100 * value for values in curves.values() for value in values if value is not None), default=0
    )
    percent_axis(axes, "percent")
    if lowest < 0:
        axes.set_ylim(bottom=lowest - 5)
    if len(set(places)) == 1:
        axes.set_xlim(places[0] - 1, places[0] + 1)
    figure.legend(
        *axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=2
    )
    return figure
