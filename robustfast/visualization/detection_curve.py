"""How well a detector finds attacked images against the radius of the attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import COLOURS, SERIES, new_figure, percent_axis, plain, save

__all__ = ["detection_curve", "draw_detection_curve"]

NAMES = {"tpr": "attacked images found (TPR)", "tnr": "clean images passed (TNR)", "auroc": "AUROC"}


def detection_curve(
    eps: Sequence[float],
    rates: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
    trained: float | None = None,
) -> Path:
    """Draw rates over eps into a PNG file; returns its path.

    Raises:
        UserError: the folder cannot be written.
    """
    figure = draw_detection_curve(eps, rates, trained=trained)
    figure.axes[0].set_title(plain(title), fontsize=11)
    return save(figure, path)


def draw_detection_curve(
    eps: Sequence[float], rates: Mapping[str, Sequence[float]], *, trained: float | None = None
) -> Figure:
    """The figure without a title.

    Args:
        eps: linf radii, rising.
        rates: "tpr", "tnr" or "auroc" to fractions, one for each radius.
        trained: the radius of the training attack, marked.

    Raises:
        ValueError: another number of rates than of radii.
    """
    figure, axes = new_figure()
    # Pixel units read as people write them.
    unit = 255 if all(abs(255 * radius - round(255 * radius)) < 1e-6 for radius in eps) else 1
    for number, (name, values) in enumerate(rates.items()):
        if len(values) != len(eps):
            raise ValueError(f"{name}: {len(values)} values for {len(eps)} radii")
        axes.plot(
            [unit * radius for radius in eps],
            [100 * value for value in values],
            color=SERIES[number % len(SERIES)],
            linewidth=1.8,
            marker="o",
            markersize=4,
            label=NAMES.get(name, plain(name)),
        )
    if trained is not None:
        axes.axvline(255 * trained, color=COLOURS["ink"], linewidth=1, linestyle=":", label="training attack")
    percent_axis(axes, "percent")
    axes.set_xlim(left=0)
    axes.set_xlabel("eps (linf, 1/255)" if unit == 255 else "eps (linf)")
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
