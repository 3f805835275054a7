"""Points of the plane in a grid of panels, coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfast.visualization.style import COLOURS, class_colours, plain, save

__all__ = ["draw_embedding_grid", "embedding_grid"]

# More names than these would be longer than the grid.
_NAMED = 20


def embedding_grid(
    rows: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    columns: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    path: Path,
    *,
    title: str,
) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
        ValueError: as `draw_embedding_grid`.
    """
    figure = draw_embedding_grid(rows, columns, labels, classes)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_embedding_grid(
    rows: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    columns: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
) -> Figure:
    """A row of panels for each entry; the panels of a row share their axes, which have no units.

    Args:
        rows: label of the row to, for each column, the points (x, y) of the images.
        columns: headings.
        labels: class of each image.
        classes: names, in label order.

    Raises:
        ValueError: a row has another number of columns, or a panel another number of points than there are labels.
    """
    figure = Figure(figsize=(0.5 + 2.1 * len(columns), 0.9 + 2.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex="row", sharey="row")
    colours = class_colours(len(classes))
    shown = [colours[label] for label in labels]
    for axes_row, (name, row) in zip(panels, rows.items(), strict=True):
        if len(row) != len(columns) or any(len(points) != len(labels) for points in row):
            found = [len(points) for points in row]
            raise ValueError(
                f"{name}: {found} points, expected {len(labels)} in each of {len(columns)} columns"
            )
        for axes, points in zip(axes_row, row, strict=True):
            axes.scatter(
                [point[0] for point in points],
                [point[1] for point in points],
                c=shown,
                s=_size(len(labels)),
                linewidths=0,
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(COLOURS["grid"])
        axes_row[0].set_ylabel(plain(name), fontsize=9)
    for axes, heading in zip(panels[0], columns, strict=True):
        axes.set_title(plain(heading), fontsize=9)
    if len(classes) <= _NAMED:
        dots: list[Any] = [
            Line2D([], [], linestyle="", marker="o", markersize=5, color=colour) for colour in colours
        ]
        figure.legend(
            dots,
            [plain(name) for name in classes],
            fontsize=8,
            frameon=False,
            loc="outside lower center",
            ncols=min(len(classes), 2 + 2 * len(columns)),
            columnspacing=1.0,
            handletextpad=0.1,
        )
    return figure


def _size(points: int) -> float:
    """Area of a dot, so that many points do not become one patch."""
    return max(1.5, min(14.0, 3000 / max(points, 1)))
