"""Figures of a page: each is well formed, has colours of the page alone, and shares no id with another."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from robustfast.visualization.class_accuracy import draw_class_accuracy
from robustfast.visualization.confusion_matrix import draw_confusion_matrix
from robustfast.visualization.disentanglement_bars import draw_disentanglement_bars
from robustfast.visualization.disentanglement_curve import draw_disentanglement_curve
from robustfast.visualization.page_style import DARK_PAGE, LIGHT_PAGE, style_sheet
from robustfast.visualization.pixels import data_uri
from robustfast.visualization.run_lines import draw_run_lines
from robustfast.visualization.style import COLOURS, DARK, svg

WAYS = {"s": 0.9, "r": 0.8, "n": None}
MATRIX = torch.tensor([[3, 1], [0, 4]])

FIGURES: dict[str, Callable[[], Figure]] = {
    "bars": lambda: draw_disentanglement_bars(WAYS, WAYS),
    "curve": lambda: draw_disentanglement_curve([1, 2], {"r": [0.5, 0.6]}, {"r": [0.1, 0.2], "n": [0, 0]}),
    "curve-below": lambda: draw_disentanglement_curve([1], {"r": [0.5]}, {"r": [0.1]}, legend_below=True),
    "lines": lambda: draw_run_lines({"a": ([1, 2], [0.5, 0.1]), "b <&>": ([1], [0.2])}, label="loss"),
    "logarithmic": lambda: draw_run_lines({"a": ([1, 2], [0.5, 0.0])}, label="loss", logarithmic=True),
    "nothing-above-0": lambda: draw_run_lines({"a": ([1], [0.0])}, label="loss", logarithmic=True),
    "many-lines": lambda: draw_run_lines({str(n): ([1, 2], [n, n]) for n in range(20)}, label="loss"),
    "classes": lambda: draw_class_accuracy(["a", "b"], {"r": [1.0, None]}, {"r": [0.5, None]}),
    "confusion": lambda: draw_confusion_matrix(["a", "b"], {"s": MATRIX, "r": MATRIX}),
    "confusion-many": lambda: draw_confusion_matrix(
        list(map(str, range(30))), {"n": torch.eye(30, dtype=torch.int64)}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_an_element_of_a_page(name: str) -> None:
    text = svg(FIGURES[name](), "a-name", "what it shows, <quoted> & all")
    root = ElementTree.fromstring(
        text.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    )
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "what it shows, <quoted> & all"
    assert "<style" not in text  # it would style the whole page
    assert len(root.findall(".//path")) + len(root.findall(".//use")) > 3
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(set(ids)) == len(ids)
    assert all(found.startswith("a-name-") for found in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(used) <= set(ids)


@pytest.mark.parametrize("name", FIGURES)
def test_every_colour_is_one_of_the_page(name: str) -> None:
    text = svg(FIGURES[name](), name, "")
    assert not re.findall(r"#[0-9a-f]{6}\b", text)
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(COLOURS)


def test_the_same_figure_has_the_same_bytes() -> None:
    assert svg(FIGURES["lines"](), "a", "") == svg(FIGURES["lines"](), "a", "")


def test_colours_have_a_dark_form_and_are_told_apart() -> None:
    assert set(DARK) == set(COLOURS)
    assert set(DARK_PAGE) == set(LIGHT_PAGE)
    assert len(set(COLOURS.values())) == len(COLOURS)
    used = set(re.findall(r"var\(--([\w-]+)\)", style_sheet()))
    assert used <= set(COLOURS) | set(LIGHT_PAGE)


def contrast(one: str, other: str) -> float:
    """Ratio of luminances as WCAG 2.1 defines it."""

    def luminance(colour: str) -> float:
        values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("colours", "page"), [(COLOURS, LIGHT_PAGE), (DARK, DARK_PAGE)])
def test_text_is_read_easily_light_and_dark(colours: dict[str, str], page: dict[str, str]) -> None:
    for name in ("text", "muted", "wrong", "right"):
        for behind in ("card", "page", "head"):
            assert contrast(page[name], page[behind]) >= 4.5, (name, behind)
    for way in "srn":
        assert contrast(colours[f"on-way-{way}"], colours[f"way-{way}"]) >= 4.5, way


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_in_a_page_keeps_its_pixels(channels: int) -> None:
    levels = torch.arange(channels * 20).view(channels, 4, 5)
    uri = data_uri(levels / 255)
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    found = imread(io.BytesIO(base64.b64decode(data)))[..., :3]
    expected = levels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    assert np.array_equal(np.round(found * 255), expected)


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", "cost $5", r"\frac{", "<tag> & more", "x_1^2"])
def test_names_are_drawn_as_they_are(name: str) -> None:
    drawings = [
        draw_run_lines({name: ([1], [1.0]), "b": ([1], [2.0])}, label="loss"),
        draw_class_accuracy([name, "b"], {"r": [1.0, 1.0]}, {"r": [0.5, 0.5]}),
        draw_confusion_matrix([name, "b"], {"r": MATRIX}),
    ]
    for drawing in drawings:
        text = svg(drawing, "a", "").replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
        shown = ["".join(element.itertext()).strip() for element in ElementTree.fromstring(text).iter("text")]
        assert name in [words.replace("\u2060", "") for words in shown], shown


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an image"):
        data_uri(torch.zeros(2, 4, 4))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: draw_run_lines({"a": ([1], [1.0, 2.0])}, label=""), "a: 2 values for 1 epochs"),
        (lambda: draw_run_lines({}, label=""), "at least one line"),
        (lambda: draw_class_accuracy(["a"], {"r": [1, 2]}, {"r": [1]}), "r: 2 accuracies for 1 classes"),
        (lambda: draw_confusion_matrix(["a"], {"r": MATRIX}), r"r: \[2, 2\] for 1 classes"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(draw: Callable[[], Figure], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw()
