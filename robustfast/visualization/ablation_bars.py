"""The ablation of the four losses (AAT figure 2b): natural accuracy, R and N under attack, and DIA per set of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustfast.visualization.style import WAY_COLOURS, new_figure, percent_axis, save

__all__ = ["ablation_bars"]

_BARS = {
    "natural s": ("S natural", WAY_COLOURS["s"]),
    "adversarial r": ("R attacked", WAY_COLOURS["r"]),
    "adversarial n": ("N attacked", WAY_COLOURS["n"]),
    "dia": ("DIA", "#2c9c6a"),
}


def ablation_bars(rows: Mapping[str, Sequence[float | None]], path: Path, *, title: str) -> Path:
    """Draw four bars per set of terms.

    Args:
        rows: label of a set of terms to (S natural, R attacked, N attacked, DIA) as fractions; None is left out.
        path: PNG file to write.
        title: over the figure.

    Returns:
        `path`.

    Raises:
        ValueError: a row has another number of values than four.
    """
    figure, axes = new_figure(width=8.0)
    for label, values in rows.items():
        if len(values) != len(_BARS):
            raise ValueError(
                f"row {label!r}: expected {len(_BARS)} values ({', '.join(_BARS)}), got {len(values)}"
            )
    width = 0.8 / len(_BARS)
    for number, (name, colour) in enumerate(_BARS.values()):
        places = [place for place, values in enumerate(rows.values()) if values[number] is not None]
        heights = [100 * values[number] for values in rows.values() if values[number] is not None]
        shift = (number - (len(_BARS) - 1) / 2) * width
        bars = axes.bar(
            [place + shift for place in places], heights, width=0.92 * width, color=colour, label=name
        )
        axes.bar_label(bars, fmt="%.0f", padding=1, fontsize=7)
    axes.set_xticks(range(len(rows)), list(rows))
    percent_axis(axes)
    axes.set_ylim(min(0.0, axes.dataLim.y0), 105)
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return save(figure, path)
