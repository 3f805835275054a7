"""Robust and non-robust features pulled apart: accuracy of each way under attack over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import WAY_COLOURS, WAY_NAMES, new_figure, percent_axis, save

__all__ = ["disentanglement_curve", "draw_disentanglement_curve"]


def disentanglement_curve(
    epochs: Sequence[int],
    natural: Mapping[str, Sequence[float]],
    adversarial: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
) -> Path:
    """Draw accuracy over epochs, dashed on natural images and solid under attack; R and N enclose the DIA.

    Args:
        epochs: finished epochs, one per value.
        natural: way to its accuracies on natural images, fractions.
        adversarial: way to its accuracies under the attack on it, fractions.
        path: PNG file to write.
        title: over the figure.

    Returns:
        `path`.

    Raises:
        ValueError: a curve has another number of values than there are epochs.
    """
    figure = draw_disentanglement_curve(epochs, natural, adversarial)
    figure.axes[0].set_title(title, fontsize=11)
    return save(figure, path)


def draw_disentanglement_curve(
    epochs: Sequence[int],
    natural: Mapping[str, Sequence[float]],
    adversarial: Mapping[str, Sequence[float]],
    *,
    legend_below: bool = False,
) -> Figure:
    """The figure without a title, its legend beside the axes or, in a narrower one, below them."""
    figure, axes = new_figure(5.4, 3.5) if legend_below else new_figure()
    # Few checks: show where they are. Open circles are natural, as the dashes are.
    marker = "o" if len(epochs) <= 12 else None
    for kind, curves, style, width in (("natural", natural, "--", 1.2), ("attacked", adversarial, "-", 2.0)):
        for way, values in curves.items():
            if len(values) != len(epochs):
                raise ValueError(f"{kind} {way}: {len(values)} values for {len(epochs)} epochs")
            axes.plot(
                epochs,
                [100 * value for value in values],
                style,
                linewidth=width,
                color=WAY_COLOURS[way],
                marker=marker,
                markersize=4,
                markerfacecolor="white" if kind == "natural" else None,
                label=f"{way.upper()} {WAY_NAMES[way]}, {kind}",
            )
    if "r" in adversarial and "n" in adversarial:
        axes.fill_between(
            epochs,
            [100 * value for value in adversarial["n"]],
            [100 * value for value in adversarial["r"]],
            color=WAY_COLOURS["r"],
            alpha=0.08,
            linewidth=0,
        )
    percent_axis(axes)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.03 * max(epochs))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if legend_below:
        handles = axes.get_legend_handles_labels()
        figure.legend(*handles, fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    else:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
