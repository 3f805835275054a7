"""One number over the epochs, a line for each run or for each part of a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustfast.visualization.style import SERIES, new_figure, plain

__all__ = ["draw_run_lines"]

STYLES = ("-", "--", ":", "-.")


def draw_run_lines(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    label: str,
    logarithmic: bool = False,
    width: float = 5.4,
) -> Figure:
    """Draw lines over the epochs; a line of one epoch is a point.

    Args:
        lines: what the legend calls it to its epochs and values; with one line there is no legend.
        label: of the y axis.
        logarithmic: whether the y axis is; values of 0 and below are left out there.
        width: of the figure in inches.

    Raises:
        ValueError: a line has another number of values than epochs, or there is none.
    """
    if not lines:
        raise ValueError("expected at least one line")
    figure, axes = new_figure(width, 0.1 + 0.58 * width)
    for number, (name, (epochs, values)) in enumerate(lines.items()):
        if len(epochs) != len(values):
            raise ValueError(f"{name}: {len(values)} values for {len(epochs)} epochs")
        shown = [(e, v) for e, v in zip(epochs, values, strict=True) if v > 0 or not logarithmic]
        axes.plot(
            [e for e, _ in shown],
            [v for _, v in shown],
            # Beyond the palette the same colours come again in another stroke.
            STYLES[number // len(SERIES) % len(STYLES)],
            color=SERIES[number % len(SERIES)],
            linewidth=1.8,
            marker="o" if len(shown) <= 12 else None,
            markersize=4,
            label=plain(name),
        )
    if logarithmic and axes.lines and any(len(line.get_xdata()) for line in axes.lines):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlim(0, 1.03 * max((max(epochs, default=1) for epochs, _ in lines.values()), default=1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if len(lines) > 1:
        letters = max(map(len, lines))
        figure.legend(
            *axes.get_legend_handles_labels(),
            fontsize=8,
            frameon=False,
            loc="outside lower center",
            ncols=min(len(lines), max(1, int(9 * width / (letters + 4)))),
        )
    return figure
