"""One look for every figure: the colour of each way, plain axes in percent, PNG files written whole."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfast.errors import UserError
from robustfast.training.checkpoint import write_durably

__all__ = ["WAY_COLOURS", "WAY_NAMES", "new_figure", "percent_axis", "save"]

WAY_NAMES = {"s": "standard", "r": "robust", "n": "non-robust"}
# Distinct in hue and in lightness, so that the ways stay apart for colour-blind readers and in grey print.
WAY_COLOURS = {"s": "#5b6470", "r": "#1f6fb4", "n": "#e08a2e"}


def new_figure(width: float = 6.4, height: float = 3.8) -> tuple[Figure, Axes]:
    """A figure (inches) and its only axes. Without pyplot: it needs no display and keeps no state between figures."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def percent_axis(axes: Axes, label: str = "accuracy (%)") -> None:
    """Make the y axis percent from 0 to 100, with room above the full bar for its number."""
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG at 150 dots per inch; a crash leaves the old file or the new one.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {path.parent}: {error.strerror}; give one that can be written"
        ) from error
    # Without the tag that names matplotlib's version the same numbers give the same bytes.
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=150, metadata={"Software": None}))
    return path
