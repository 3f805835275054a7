"""The images of a report, as HTML: natural and attacked ones, perturbations, gradient maps, inversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import torch
from torch import Tensor

from robustfast.evaluation.examples import Examples, WayExamples
from robustfast.evaluation.look import Look
from robustfast.visualization.pixels import data_uri
from robustfast.visualization.style import WAY_NAMES

__all__ = ["example_tables", "inversion_tables", "way_badge"]

COLUMNS = 8
"""Images side by side: what a page of paper holds."""
PIXELATED = 96
"""Images below this width are shown with hard pixels, as they are; larger ones are scaled down smoothly."""


def example_tables(look: Look) -> str:
    """Each image with what attacks it through each way, the perturbation and the gradient map below it."""
    return "".join(_example_table(look, part) for part in _parts(look.examples.labels))


def inversion_tables(look: Look) -> str:
    """Each image, and below it the images with nearly the same representation."""
    tables = ""
    for part in _parts(look.examples.labels):
        body = _body(
            [_row("image", look.examples.images, part, lambda i: f"natural image, {_class(look, i)}")]
        )
        for found in look.inversions:

            def said(i: int, found=found) -> str:
                return f'<span class="said">distance {found.distances[i]:.3f}</span>'

            name = {"r": "robust", "n": "non-robust"}[found.encoder]
            body += _body(
                [
                    _row(
                        f"{way_badge(found.encoder)} {name} representation, inverted",
                        found.images,
                        part,
                        lambda i, name=name: (
                            f"inversion of the {name} representation of an image of {_class(look, i)}"
                        ),
                        said,
                    )
                ]
            )
        tables += _table(look, part, body)
    return tables


def way_badge(way: str) -> str:
    """The letter of a way on its colour."""
    return f'<span class="way" style="background:var(--way-{way});color:var(--on-way-{way})">{way.upper()}</span>'


def _example_table(look: Look, part: Sequence[int]) -> str:
    examples = look.examples

    def natural(i: int) -> str:
        answers = (
            f"{way_badge(way.way)} {_answer(look, int(way.natural[i]), int(examples.labels[i]))}"
            for way in examples.ways
        )
        return "".join(f'<span class="said">{answer}</span>' for answer in answers)

    body = _body(
        [
            _row(
                "natural",
                examples.images,
                part,
                lambda i: f"natural image, {_class(look, i)}",
                natural,
            )
        ]
    )
    return _table(look, part, body + "".join(_way_rows(look, examples, way, part) for way in examples.ways))


def _way_rows(look: Look, examples: Examples, way: WayExamples, part: Sequence[int]) -> str:
    name = f"{way.way.upper()} ({WAY_NAMES[way.way]})"

    def said(i: int) -> str:
        answer = _answer(look, int(way.attacked[i]), int(examples.labels[i]))
        return f'<span class="said">{answer}</span>'

    return _body(
        [
            _row(
                f"{way_badge(way.way)} under attack",
                way.adversarial,
                part,
                lambda i: (
                    f"{_class(look, i)} attacked through {name}, taken for {look.classes[int(way.attacked[i])]}"
                ),
                said,
            ),
            _row(
                f"perturbation ×{examples.magnification:.3g}",
                way.perturbation,
                part,
                lambda i: f"perturbation of {_class(look, i)} against {name}, magnified",
            ),
            _row(
                "input gradient",
                way.gradient,
                part,
                lambda i: f"input gradient of {name} on {_class(look, i)}",
            ),
        ]
    )


def _answer(look: Look, answer: int, truth: int) -> str:
    name, right = escape(look.classes[answer]), answer == truth
    return f'<span class="{"right" if right else "wrong"}">{name}&nbsp;{"✓" if right else "✗"}</span>'


def _class(look: Look, i: int) -> str:
    return f"class {look.classes[int(look.examples.labels[i])]}"


def _parts(labels: Tensor) -> list[list[int]]:
    """The images in rows of `COLUMNS`."""
    return [part.tolist() for part in torch.arange(len(labels)).split(COLUMNS)]


def _table(look: Look, part: Sequence[int], body: str) -> str:
    headings = "".join(
        f'<th scope="col">{escape(look.classes[int(look.examples.labels[i])])}'
        f"<br><span>image {int(look.examples.positions[i])}</span></th>"
        for i in part
    )
    head = f"<thead><tr><th></th>{headings}</tr></thead>"
    return f'<div class="scroll"><table class="examples">{head}{body}</table></div>'


def _body(rows: Sequence[str]) -> str:
    return f"<tbody>{''.join(rows)}</tbody>"


def _row(
    head: str,
    images: Tensor,
    part: Sequence[int],
    alt: Callable[[int], str],
    said: Callable[[int], str] = lambda i: "",
) -> str:
    width = images.shape[-1]
    kind = ' class="pixels"' if width < PIXELATED else ""
    cells = "".join(
        f'<td><img{kind} src="{data_uri(images[i])}" alt="{escape(alt(i))}" width="{width}" '
        f'height="{images.shape[-2]}">{said(i)}</td>'
        for i in part
    )
    return f'<tr><th scope="row">{head}</th>{cells}</tr>'
