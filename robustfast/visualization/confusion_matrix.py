"""Which class was taken for which, as squares whose depth is the share of the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from robustfast.visualization.style import COLOURS, WAY_COLOURS, WAY_NAMES, plain

__all__ = ["draw_confusion_matrix"]

NUMBERED = 12
"""Up to so many classes a square has room for its number, and an axis for the names."""


def draw_confusion_matrix(names: Sequence[str], counts: Mapping[str, Tensor]) -> Figure:
    """Draw one matrix for each way: rows are true classes, columns what the way took them for.

    Args:
        names: of the K classes.
        counts: way to int64 [K, K].

    Raises:
        ValueError: a matrix of another size.
    """
    classes = len(names)
    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    columns = figure.subplots(1, len(counts), squeeze=False)[0]
    for axes, (way, matrix) in zip(columns, counts.items(), strict=True):
        if matrix.shape != (classes, classes):
            raise ValueError(f"{way}: {list(matrix.shape)} for {classes} classes")
        totals = matrix.sum(dim=1).clamp(min=1)
        squares, shares = [], []
        for row, column in matrix.nonzero().tolist():
            share = float(matrix[row, column] / totals[row])
            squares.append(Rectangle((column - 0.5, row - 0.5), 1, 1))
            shares.append(0.08 + 0.92 * share)
            if classes <= NUMBERED:
                colour = COLOURS[f"on-way-{way}"] if share > 0.5 else COLOURS["ink"]
                text = str(int(matrix[row, column]))
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)
        axes.add_collection(PatchCollection(squares, facecolor=WAY_COLOURS[way], alpha=shares, linewidth=0))
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_title(f"{way.upper()}: {WAY_NAMES[way]}", fontsize=10)
        axes.set_xlabel("taken for")
        axes.tick_params(length=0, labelsize=7)
        for spine in axes.spines.values():
            spine.set_color(COLOURS["grid"])
        if classes <= NUMBERED:
            shown = [plain(name) for name in names]
            axes.set_xticks(range(classes), shown, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(range(classes), shown)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
    columns[0].set_ylabel("true class")
    return figure
