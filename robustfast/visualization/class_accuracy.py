"""Accuracy of each class, natural and attacked, for every way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, WAY_COLOURS, WAY_NAMES, plain

__all__ = ["draw_class_accuracy"]


def draw_class_accuracy(
    names: Sequence[str],
    natural: Mapping[str, Sequence[float | None]],
    attacked: Mapping[str, Sequence[float | None]],
) -> Figure:
    """Draw a line from attacked (full) to natural (open) accuracy for each class, one column for each way.

    Args:
        names: of the classes, from top to bottom.
        natural: way to its accuracy for each class as a fraction; None where no image of the class was seen.
        attacked: the same on images that attack the way itself.

    Raises:
        ValueError: a way has another number of accuracies than there are classes.
    """
    figure = Figure(figsize=(8.6, 0.9 + 0.24 * len(names)), layout="constrained")
    columns = figure.subplots(1, len(natural), sharey=True, squeeze=False)[0]
    for axes, way in zip(columns, natural, strict=True):
        for kind in (natural, attacked):
            if len(kind[way]) != len(names):
                raise ValueError(f"{way}: {len(kind[way])} accuracies for {len(names)} classes")
        colour = WAY_COLOURS[way]
        for row, (above, below) in enumerate(zip(natural[way], attacked[way], strict=True)):
            if above is None or below is None:
                continue
            axes.plot([100 * below, 100 * above], [row, row], color=colour, linewidth=1.6, alpha=0.45)
            axes.plot(100 * above, row, "o", color=colour, markerfacecolor=COLOURS["paper"], markersize=5)
            axes.plot(100 * below, row, "o", color=colour, markersize=5)
        axes.set_title(f"{way.upper()}: {WAY_NAMES[way]}", fontsize=10)
        axes.set_xlim(-4, 104)
        axes.set_xticks(range(0, 101, 25))
        axes.set_xlabel("accuracy (%)")
        axes.grid(axis="x", color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    columns[0].set_yticks(range(len(names)), map(plain, names))
    columns[0].set_ylim(len(names) - 0.5, -0.5)
    return figure
