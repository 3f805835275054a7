"""The distance between natural and attacked features beside the gap in error that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfast.visualization.radii import radius_unit
from robustfast.visualization.style import COLOURS, SERIES, plain, save

__all__ = ["draw_hdh_curve", "hdh_curve"]

_KINDS = {"fixed": ("threshold 0", "--", "o"), "fitted": ("fitted threshold", "-", "s")}
_GAP = "gap in error, attacked - clean (%)"
# Of the scatter: more attacks than there are colours differ by their mark.
_MARKS = ("o", "s", "^", "D")


def hdh_curve(numbers: Mapping[str, Any], path: Path, *, title: str) -> Path:
    """Draw into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_hdh_curve(numbers)
    figure.suptitle(plain(title), fontsize=11)
    return save(figure, path)


def draw_hdh_curve(numbers: Mapping[str, Any]) -> Figure:
    """Left: distance and gap against eps under one attack (AFD, figure 3a). Then for each threshold the two against
    each other over all attacks and radii (figure 3b).

    Args:
        numbers: `eps`, `gap`, `fixed`, `fitted` of equal length; `attack` and `norm`, whose they are; `per_attack`: by
            name `eps`, `gap`, `fixed.distance`, `fitted.distance`; `correlation`: by threshold `pearson` or None.
    """
    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    left, *scatters = figure.subplots(1, 3)
    _curves(left, numbers)
    names = list(numbers["per_attack"])
    for axes, kind in zip(scatters, _KINDS, strict=True):
        for place, name in enumerate(names):
            attack = numbers["per_attack"][name]
            axes.plot(
                attack[kind]["distance"],
                [100 * gap for gap in attack["gap"]],
                _MARKS[place // len(SERIES) % len(_MARKS)],
                color=SERIES[place % len(SERIES)],
                markersize=5,
                alpha=0.7,
                markeredgewidth=0,
                label=plain(name),
            )
        pearson = numbers["correlation"][kind]["pearson"]
        found = "no correlation" if pearson is None else f"Pearson r = {pearson:.2f}"
        axes.set_title(f"{_KINDS[kind][0]}: {found}", fontsize=9)
        axes.set_xlabel("HΔH distance")
        axes.set_xlim(-0.08, 2.08)
        axes.grid(color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    scatters[0].set_ylabel(_GAP)
    # Equal heights mean equal gaps in both.
    scatters[1].sharey(scatters[0])
    figure.legend(
        *scatters[0].get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower right",
        ncols=len(names),
        columnspacing=1.2,
        handletextpad=0.2,
    )
    return figure


def _curves(axes: Axes, numbers: Mapping[str, Any]) -> None:
    unit, label = radius_unit(numbers["eps"], numbers["norm"])
    eps = [value * unit for value in numbers["eps"]]
    for place, (kind, (name, style, mark)) in enumerate(_KINDS.items()):
        axes.plot(
            eps,
            numbers[kind],
            style,
            marker=mark,
            markersize=4,
            linewidth=1.6,
            color=SERIES[place],
            label=name,
        )
    axes.set_ylabel("HΔH distance")
    axes.set_ylim(-0.08, 2.08)
    axes.set_xlabel(label)
    axes.set_title(f"under {plain(numbers['attack'])}", fontsize=9)
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["top"].set_visible(False)
    # 0 and 100 of the gap lie where 0 and 2 of the distance do.
    right = axes.twinx()
    right.plot(
        eps,
        [100 * gap for gap in numbers["gap"]],
        ":",
        marker="^",
        markersize=4,
        linewidth=2.0,
        color=COLOURS["ink"],
        label="gap in error",
    )
    right.set_ylim(-4, 104)
    right.set_ylabel(_GAP)
    right.spines["top"].set_visible(False)
    handles = [line for part in (axes, right) for line in part.get_lines()]
    axes.legend(
        handles, [str(line.get_label()) for line in handles], fontsize=8, frameon=False, loc="upper left"
    )
