"""Accuracy against the radius of the ball, a line for each attack and one for all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, SERIES, new_figure, percent_axis, plain, save

__all__ = ["accuracy_curves", "draw_accuracy_curves"]

STYLES = ("-", "--", ":", "-.")


def accuracy_curves(document: Mapping[str, Any], norm: str, path: Path, *, title: str) -> Path:
    """Draw the attacks of one norm of a sweep into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_accuracy_curves(document, norm)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_accuracy_curves(document: Mapping[str, Any], norm: str, *, width: float = 6.4) -> Figure:
    """The figure without a title, its legend below the axes.

    Args:
        document: a sweep.
        norm: whose attacks.
        width: inches.

    Raises:
        ValueError: the sweep has no attack of that norm.
    """
    attacks = {name: record for name, record in document["attacks"].items() if record["norm"] == norm}
    if not attacks:
        raise ValueError(
            f"no attack has the norm {norm!r}: expected one of {', '.join(document['worst_case'])}"
        )
    figure, axes = new_figure(width, 0.4 + 0.58 * width)
    largest = max(record["eps"][-1] for record in attacks.values())
    # Pixel units read as people write them; other norms have no such unit.
    pixels = norm == "linf" and all(
        abs(eps * 255 - round(eps * 255)) < 1e-6 for record in attacks.values() for eps in record["eps"]
    )
    unit = 255 if pixels and largest < 1 else 1
    for number, (name, record) in enumerate(attacks.items()):
        axes.plot(
            [eps * unit for eps in record["eps"]],
            [100 * value for value in record["accuracy"]],
            STYLES[number // len(SERIES) % len(STYLES)],
            color=SERIES[number % len(SERIES)],
            linewidth=1.6,
            marker="o",
            markersize=4,
            label=plain(name),
        )
    if len(attacks) > 1:
        worst = document["worst_case"][norm]
        axes.plot(
            [eps * unit for eps in worst["eps"]],
            [100 * value for value in worst["accuracy"]],
            color=COLOURS["ink"],
            linewidth=2.4,
            alpha=0.35,
            label="all of them",
            zorder=1,
        )
    percent_axis(axes)
    axes.set_xlim(0, 1.03 * largest * unit)
    axes.set_xlabel(f"eps ({norm}, 1/255)" if unit == 255 else f"eps ({norm})")
    figure.legend(
        *axes.get_legend_handles_labels(),
        fontsize=8,
        frameon=False,
        loc="outside lower center",
        ncols=max(1, min(len(attacks) + 1, int(9 * width / (max(map(len, attacks)) + 4)))),
    )
    return figure
