"""One look for every figure: the colour of each way and run, plain axes in percent, files and pages written whole."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

import matplotlib
import matplotlib.colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfast.errors import UserError
from robustfast.training.checkpoint import write_durably

__all__ = [
    "COLOURS",
    "DARK",
    "SERIES",
    "WAY_COLOURS",
    "WAY_NAMES",
    "class_colours",
    "new_figure",
    "percent_axis",
    "plain",
    "save",
    "svg",
]

WAY_NAMES = {"s": "standard", "r": "robust", "n": "non-robust"}
# Distinct in hue and in lightness, so that the ways stay apart for colour-blind readers and in grey print.
WAY_COLOURS = {"s": "#5b6470", "r": "#1f6fb4", "n": "#e08a2e"}
# For what has no colour of its own, runs and loss terms: neighbours differ in lightness too.
SERIES = ("#2f5fa8", "#d1603d", "#2c9c6a", "#8a5fb0", "#b8892b", "#3b9db0", "#a34d6d", "#737d8a")

COLOURS = {
    "ink": "#000000",
    "paper": "#ffffff",
    "grid": "#e3e5e8",
    **{f"way-{way}": colour for way, colour in WAY_COLOURS.items()},
    # Letters on a full patch of the way's colour; no two colours may be written alike.
    "on-way-s": "#fefefe",
    "on-way-r": "#fdfdfd",
    "on-way-n": "#15191f",
    **{f"series-{number}": colour for number, colour in enumerate(SERIES)},
}
"""Every colour a figure may have by its name, as files have it; on a page it is the CSS variable of that name."""

DARK = {
    "ink": "#e4e7eb",
    "paper": "#171b21",
    "grid": "#333a44",
    "way-s": "#a3adb8",
    "way-r": "#62a8e5",
    "way-n": "#f0a458",
    "on-way-s": "#15191f",
    "on-way-r": "#15191f",
    "on-way-n": "#15191f",
    "series-0": "#7fa9ec",
    "series-1": "#f08e6c",
    "series-2": "#61c898",
    "series-3": "#bd9be0",
    "series-4": "#dcb55f",
    "series-5": "#76cbdc",
    "series-6": "#dd8fac",
    "series-7": "#aab4c0",
}
"""The same colours on a dark page."""


def new_figure(width: float = 6.4, height: float = 3.8) -> tuple[Figure, Axes]:
    """A figure (inches) and its only axes. Without pyplot: it needs no display and keeps no state between figures."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def percent_axis(axes: Axes, label: str = "accuracy (%)") -> None:
    """Make the y axis percent from 0 to 100, with room above the full bar for its number."""
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(label)


def class_colours(classes: int) -> list[str]:
    """A colour for each of so many classes, as distinct as they can be."""
    if classes <= len(SERIES):
        return list(SERIES[:classes])
    if classes <= 20:
        found = matplotlib.colormaps["tab10" if classes <= 10 else "tab20"]
        return [matplotlib.colors.to_hex(found(place)) for place in range(classes)]
    found = matplotlib.colormaps["hsv"]
    return [matplotlib.colors.to_hex(found(place / classes)) for place in range(classes)]


def plain(text: str) -> str:
    """`text` so that matplotlib draws it as it is: no formula between dollars, no legend without it for its "_"."""
    shown = text.replace("$", r"\$")
    return f"\u2060{shown}" if shown.startswith("_") else shown


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


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element of an HTML page: its colours are the page's variables, its letters the page's font.

    Args:
        figure: drawn with the colours in `COLOURS` alone.
        name: letters, digits and hyphens, different for each figure of the page: the ids inside start with it.
        alt: what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    # Text as text is searched and read aloud, and scales with the page. The salt makes equal figures equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width = float(re.search(r'width="([\d.]+)pt"', text)[1])  # type: ignore[index]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    named = {colour: key for key, colour in COLOURS.items()}
    text = re.sub(
        r"#[0-9a-f]{6}\b", lambda hit: f"var(--{named[hit[0]]})" if hit[0] in named else hit[0], text
    )
    box = re.search(r'viewBox="[^"]+"', text)[0]  # type: ignore[index]
    # A point is 4/3 of a pixel: at this width letters have the size they were drawn with.
    head = f'<svg {box} role="img" aria-label="{escape(alt)}" style="max-width:{width * 4 / 3:.0f}px">'
    return head + text[text.index(">") + 1 :].strip()
