"""Accuracy against eps under several attacks: a panel for each attack, a line for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, SERIES, percent_axis, plain, save

__all__ = ["Panel", "accuracy_panels", "draw_accuracy_panels"]

COLUMNS = 3
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Panel:
    """One attack.

    Attributes:
        title: over the panel.
        norm: of its radii.
        curves: run to radii and accuracies there, fractions.
    """

    title: str
    norm: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def accuracy_panels(panels: Sequence[Panel], path: Path, *, title: str) -> Path:
    """Draw panels into a PNG file; returns its path.

    Raises:
        ValueError: no panel, or one without a curve.
        UserError: the folder cannot be written.
    """
    figure = draw_accuracy_panels(panels)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_accuracy_panels(panels: Sequence[Panel]) -> Figure:
    """The figure without a title, its legend below where there is more than one run.

    Raises:
        ValueError: no panel, or one without a curve.
    """
    if not panels or not all(panel.curves for panel in panels):
        raise ValueError(f"expected panels with a curve each, got {[panel.title for panel in panels]}")
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.1 * COLUMNS, 2.4 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    # One colour for a run in every panel.
    labels = list(dict.fromkeys(label for panel in panels for label in panel.curves))
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.remove()
            continue
        panel = panels[place]
        largest = max(eps[-1] for eps, _ in panel.curves.values())
        unit = _unit(panel, largest)
        for label, (eps, accuracy) in panel.curves.items():
            number = labels.index(label)
            axes.plot(
                [unit * value for value in eps],
                [100 * value for value in accuracy],
                STYLES[number // len(SERIES) % len(STYLES)],
                color=SERIES[number % len(SERIES)],
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=plain(label),
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        percent_axis(axes, "accuracy (%)" if place % COLUMNS == 0 else "")
        axes.set_xlim(0, 1.03 * unit * largest)
        axes.set_xlabel(f"eps ({panel.norm}, 1/255)" if unit == 255 else f"eps ({panel.norm})", fontsize=9)
        axes.set_title(plain(panel.title), fontsize=10)
        axes.tick_params(labelsize=8)
    if len(labels) > 1:
        lines = {plain(label): None for label in labels}
        for axes in figure.axes:
            lines |= {line.get_label(): line for line in axes.lines}
        figure.legend(
            list(lines.values()),
            list(lines),
            fontsize=9,
            frameon=False,
            loc="outside lower center",
            ncols=min(len(labels), 5),
        )
    return figure


def _unit(panel: Panel, largest: float) -> int:
    """255 where the radii are whole pixel values, which read better as such."""
    whole = all(
        abs(value * 255 - round(value * 255)) < 1e-6 for eps, _ in panel.curves.values() for value in eps
    )
    return 255 if panel.norm == "linf" and whole and largest < 1 else 1
