"""Points of the plane in a grid of panels, a colour and a mark for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfast.visualization.style import COLOURS, plain, save

__all__ = ["Panel", "PointGroup", "draw_point_groups", "point_groups"]

# More names than these would be longer than the figure.
_NAMED = 24


@dataclass(frozen=True)
class PointGroup:
    """Points that look alike.

    Attributes:
        name: in the legend; "" for none. Groups of one name, in several panels, look alike.
        points: (x, y) of each.
        colour: of matplotlib.
        mark: triangle or dot.
    """

    name: str
    points: Sequence[Sequence[float]]
    colour: str
    mark: Literal["^", "o"] = "o"


@dataclass(frozen=True)
class Panel:
    """One panel: its heading and groups, later ones over earlier ones."""

    heading: str
    groups: Sequence[PointGroup]


def point_groups(panels: Sequence[Sequence[Panel]], path: Path, *, title: str) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
        ValueError: as `draw_point_groups`.
    """
    figure = draw_point_groups(panels)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_point_groups(panels: Sequence[Sequence[Panel]]) -> Figure:
    """The figure without a title; the axes have no units.

    Args:
        panels: rows of panels, all of one length.

    Raises:
        ValueError: no panels, or rows of different lengths.
    """
    lengths = {len(row) for row in panels}
    if len(lengths) != 1 or not all(lengths):
        raise ValueError(f"rows of {sorted(lengths)} panels, expected one row or more of one length")
    columns = lengths.pop()
    side = 4.6 if len(panels) * columns == 1 else 3.4
    figure = Figure(figsize=(0.3 + side * columns, 0.9 + side * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), columns, squeeze=False)
    shown: dict[str, Any] = {}
    for line, row in zip(grid, panels, strict=True):
        for axes, panel in zip(line, row, strict=True):
            count = sum(len(group.points) for group in panel.groups)
            size = max(4.0, min(22.0, 9000 / max(count, 1)))
            for group in panel.groups:
                axes.scatter(
                    [point[0] for point in group.points],
                    [point[1] for point in group.points],
                    s=size,
                    color=group.colour,
                    marker=group.mark,
                    linewidths=0,
                    alpha=0.8,
                )
                if group.name:
                    shown.setdefault(group.name, group)
            axes.set_title(plain(panel.heading), fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(COLOURS["grid"])
    if len(shown) <= _NAMED:
        marks = [
            Line2D([], [], linestyle="", marker=group.mark, markersize=5, color=group.colour)
            for group in shown.values()
        ]
        longest = max(map(len, shown), default=1)
        figure.legend(
            marks,
            [plain(name) for name in shown],
            fontsize=8,
            frameon=False,
            loc="outside lower center",
            ncols=max(1, min(len(shown), int(15 * side * columns / (longest + 6)))),
            columnspacing=1.0,
            handletextpad=0.1,
        )
    return figure
