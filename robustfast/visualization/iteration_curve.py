"""Accuracy against the number of an attack's steps, a line for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import SERIES, new_figure, percent_axis, plain, save

__all__ = ["draw_iteration_curve", "iteration_curve"]


def iteration_curve(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], path: Path, *, title: str
) -> Path:
    """Draw accuracies over the steps into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_iteration_curve(steps, curves)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_iteration_curve(steps: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Figure:
    """The figure without a title.

    Args:
        steps: rising.
        curves: what the legend calls a model to its accuracies as fractions, one for each number of steps.

    Raises:
        ValueError: a curve has another number of values than there are steps.
    """
    figure, axes = new_figure()
    for number, (label, values) in enumerate(curves.items()):
        if len(values) != len(steps):
            raise ValueError(f"{label}: {len(values)} values for {len(steps)} numbers of steps")
        axes.plot(
            steps,
            [100 * value for value in values],
            color=SERIES[number % len(SERIES)],
            linewidth=1.8,
            marker="o",
            markersize=4,
            label=plain(label),
        )
    percent_axis(axes)
    axes.set_xlim(0, 1.03 * steps[-1])
    axes.set_xlabel("steps of the attack")
    axes.legend(fontsize=8, frameon=False)
    return figure
