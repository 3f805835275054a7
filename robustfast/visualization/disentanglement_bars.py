"""The three ways side by side: natural images against images that attack the way itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from robustfast.visualization.style import WAY_COLOURS, WAY_NAMES, new_figure, percent_axis, save

__all__ = ["disentanglement_bars", "draw_disentanglement_bars"]


def disentanglement_bars(
    natural: Mapping[str, float | None],
    adversarial: Mapping[str, float | None],
    path: Path,
    *,
    title: str,
    dia: float | None = None,
) -> Path:
    """Draw a pair of bars per way, full on natural images and hatched under attack, ways without numbers left out.

    Args:
        natural: accuracy of the ways "s", "r", "n" as fractions.
        adversarial: accuracy of each way attacked through itself, as fractions.
        path: PNG file to write.
        title: over the figure.
        dia: the gap between R and N under attack, as a fraction, printed under the title.

    Returns:
        `path`.
    """
    figure = draw_disentanglement_bars(natural, adversarial)
    figure.axes[0].set_title(title if dia is None else f"{title}\nDIA {100 * dia:.1f}", fontsize=11)
    return save(figure, path)


def draw_disentanglement_bars(
    natural: Mapping[str, float | None], adversarial: Mapping[str, float | None]
) -> Figure:
    """The figure without a title."""
    figure, axes = new_figure()
    ways = [way for way in "srn" if natural.get(way) is not None or adversarial.get(way) is not None]
    for position, way in enumerate(ways):
        for shift, values, hatch in ((-0.19, natural, ""), (0.19, adversarial, "///")):
            value = values.get(way)
            if value is None:
                continue
            bar = axes.bar(
                position + shift,
                100 * value,
                width=0.36,
                color="white" if hatch else WAY_COLOURS[way],
                edgecolor=WAY_COLOURS[way],
                linewidth=1.2,
                hatch=hatch,
            )
            axes.bar_label(bar, fmt="%.1f", padding=2, fontsize=9)
    axes.set_xticks(
        range(len(ways)), [f"{way.upper()}: {WAY_NAMES[way]}\nnatural | attacked" for way in ways]
    )
    axes.set_xlim(-0.6, len(ways) - 0.4)
    percent_axis(axes)
    return figure
