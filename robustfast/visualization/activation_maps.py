"""Images with a map of heat on them, in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from robustfast.visualization.style import COLOURS, plain, save

__all__ = ["ActivationMap", "activation_maps", "draw_activation_maps"]

_GAP = 0.15
"""Width of a gap between columns, in columns."""


@dataclass(frozen=True)
class ActivationMap:
    """One cell.

    Attributes:
        image: float [C, H, W] in [0, 1] with one or three channels.
        heat: float [H, W] in [0, 1]; None draws the image alone.
        caption: below it.
    """

    image: Tensor
    heat: Tensor | None = None
    caption: str = ""


def activation_maps(
    rows: Sequence[tuple[str, Sequence[ActivationMap]]],
    headings: Sequence[str | None],
    path: Path,
    *,
    title: str,
) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
        ValueError: as `draw_activation_maps`.
    """
    figure = draw_activation_maps(rows, headings)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_activation_maps(
    rows: Sequence[tuple[str, Sequence[ActivationMap]]], headings: Sequence[str | None]
) -> Figure:
    """The figure without a title. Under a map the image is grey, so that colour is heat alone.

    Args:
        rows: what stands left of each row, and its cells.
        headings: of the columns; None leaves a gap before the next one, for which rows have no cell.

    Raises:
        ValueError: no rows, or a row with another number of cells than headings.
    """
    columns = [place for place, heading in enumerate(headings) if heading is not None]
    if not rows or any(len(cells) != len(columns) for _, cells in rows):
        found = [len(cells) for _, cells in rows]
        raise ValueError(f"{found} cells in the rows, expected one row or more of {len(columns)}")
    widths = [_GAP if heading is None else 1 for heading in headings]
    figure = Figure(figsize=(0.4 + 1.35 * sum(widths), 0.7 + 1.55 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(headings), squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        axes.set_axis_off()
    grid = grid[:, columns]
    for line, (name, cells) in zip(grid, rows, strict=True):
        for axes, cell in zip(line, cells, strict=True):
            grey = cell.heat is not None or len(cell.image) == 1
            pixels = cell.image.mean(0) if grey else cell.image.permute(1, 2, 0)
            axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if cell.heat is not None:
                axes.imshow(
                    cell.heat.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="nearest"
                )
            axes.set_axis_on()
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(COLOURS["grid"])
            axes.set_xlabel(plain(cell.caption), fontsize=8, labelpad=2)
        line[0].set_ylabel(plain(name), fontsize=9)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(plain(headings[column] or ""), fontsize=9)
    return figure
