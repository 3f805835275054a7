"""A report about runs: one HTML page that needs nothing beside itself, neither network nor scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch

from robustfast import __version__
from robustfast.evaluation.attacks import EvaluationAttack
from robustfast.evaluation.document import records
from robustfast.evaluation.look import Look, Missing
from robustfast.evaluation.paper_row import PaperRow
from robustfast.evaluation.run_record import RunRecord
from robustfast.evaluation.side_by_side import (
    accuracy_lines,
    config_lines,
    machine_lines,
    throughput_lines,
)
from robustfast.evaluation.sweep_tables import grid_line
from robustfast.evaluation.tables import percent
from robustfast.visualization.accuracy_curves import draw_accuracy_curves
from robustfast.visualization.class_accuracy import draw_class_accuracy
from robustfast.visualization.confusion_matrix import draw_confusion_matrix
from robustfast.visualization.disentanglement_bars import draw_disentanglement_bars
from robustfast.visualization.disentanglement_curve import draw_disentanglement_curve
from robustfast.visualization.page_images import example_tables, inversion_tables
from robustfast.visualization.page_style import style_sheet
from robustfast.visualization.page_tables import (
    accuracy_table,
    field_list,
    paper_table,
    plain_table,
    plain_value,
    sweep_table,
    throughput_table,
)
from robustfast.visualization.run_lines import draw_run_lines
from robustfast.visualization.style import SERIES, svg

__all__ = ["page"]

MOST_CLASSES = 24
"""More classes than these are too many to name one by one: the weakest and the strongest are shown."""


def page(
    runs: Sequence[RunRecord],
    looks: Sequence[Look | Missing],
    papers: Sequence[Sequence[PaperRow]],
    *,
    made: str,
) -> str:
    """The page as text.

    Args:
        runs: at least one; the first one is what the others are compared with.
        looks: what was seen of each run, or why nothing.
        papers: the rows of the paper's tables that each run stands beside.
        made: when the page was made, in words.

    Raises:
        UserError: an evaluation lacks a part.
    """
    sections = {
        "accuracy": ("Accuracy", _accuracy(runs)),
        "sweep": ("Accuracy against eps", _sweeps(runs)),
        "paper": ("Beside the paper", _paper(runs, papers)),
        "curves": ("Training", _curves(runs)),
        "images": ("Images under attack", _images(runs, looks)),
        "classes": ("Classes", _classes(runs, looks)),
        "inversion": ("Representation inversion", _inversions(runs, looks)),
        "throughput": ("Throughput", _throughput(runs)),
        "configuration": ("Configuration", _configuration(runs)),
        "machine": ("Machine and version", _machine(runs)),
    }
    shown = {key: (title, body) for key, (title, body) in sections.items() if body}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in shown.items())
    folded = "".join(
        f'<details class="section" id="{key}" open><summary><h2>{title}</h2></summary>'
        f'<div class="body">{body}</div></details>'
        for key, (title, body) in shown.items()
    )
    title = " / ".join(run.label for run in runs)
    head = "Run report" if len(runs) == 1 else f"{len(runs)} runs side by side"
    lead = (
        "One training run, its evaluation, and what its model sees."
        if len(runs) == 1
        else f"Differences are to the first run, {escape(runs[0].label)}; accuracies differ in percentage points."
    )
    cards = "".join(_card(run, position) for position, run in enumerate(runs))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Whatever the page may hold one day, it loads nothing and runs nothing.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{style_sheet()}</style></head>\n"
        f'<body><main><header><h1>{head}</h1><p class="lead">{lead}</p></header>'
        f'<div class="cards">{cards}</div><nav>{links}</nav>\n{folded}\n'
        f"<footer>Made by <code>python -m robustfast.report</code>, robustfast {__version__}, {escape(made)}."
        f"</footer></main></body></html>\n"
    )


def _card(run: RunRecord, position: int) -> str:
    config, document = run.config, run.document
    what = f"{config.preset}: {config.method} on {config.dataset}, {config.model}; {run.status}"
    if document is None:
        body = _warning(
            f"Not evaluated yet by the attacks of its data set: python -m robustfast.evaluate {run.path}"
        )
    else:
        numbers = {f"{way.upper()} natural": document["natural"].get(way) for way in "srn" if way in run.ways}
        attacked = document["adversarial"]
        numbers |= {f"{way.upper()} attacked": attacked.get(way) for way in "rn" if way in run.ways}
        numbers["DIA"] = attacked.get("dia")
        body = "".join(
            f"<div><dt>{name}</dt><dd>{percent(value)}</dd></div>"
            for name, value in numbers.items()
            if value is not None
        )
        body = f'<dl class="figures">{body}</dl>'
    return (
        f'<section class="card"><h2><span class="dot" style="background:var(--series-{position % len(SERIES)})">'
        f'</span>{escape(run.label)}</h2><p class="what">{escape(what)}</p>{body}{_unfinished(run)}</section>'
    )


def _unfinished(run: RunRecord) -> str:
    if run.finished:
        return ""
    return _warning(
        f"Unfinished, {run.epochs} of {run.config.epochs} epochs: what follows is of the run so far. It goes on with: "
        f"python -m robustfast.train --resume {run.path}"
    )


def _accuracy(runs: Sequence[RunRecord]) -> str:
    lines = accuracy_lines(runs)
    missing = [run.label for run in runs if run.document is None]
    text = _warning(f"Not evaluated: {', '.join(missing)}.") if missing else ""
    if not lines:
        return text
    figures = ""
    for position, run in enumerate(runs):
        if run.document is None:
            continue
        attacked = {"s": run.document["standard_way"]["s"]} | {
            way: run.document["adversarial"].get(way) for way in "rn"
        }
        name = run.document["attack"]["name"]
        figures += _figure(
            svg(
                draw_disentanglement_bars(run.document["natural"], attacked),
                f"bars-{position}",
                f"Bars: accuracy of each way of {run.label} on natural images and attacked through itself by {name}",
            ),
            f"{run.label}: accuracy of each way on natural images (full) and on images that attack this very way "
            f"(hatched, {name}).",
        )
    note = '<p class="note">Percent of test images. S, R and N are the standard, the robust and the non-robust way.</p>'
    table = accuracy_table(lines, _labels(runs))
    if len(runs) == 1:
        return f'{text}<div class="beside"><div>{figures}{note}{_attacks(runs)}</div>{table}</div>'
    return f'{text}<div class="pair">{figures}</div>{note}{table}{_attacks(runs)}'


def _attacks(runs: Sequence[RunRecord]) -> str:
    """How each run was attacked and on what, once where it is the same for all."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.document is None:
            continue
        document = run.document
        checkpoint = document.get("checkpoint", {})
        weights = (
            f"checkpoint {checkpoint.get('name', 'unknown')}, epoch {checkpoint.get('epoch', 'unknown')}"
        )
        images = (
            f"{document.get('images', '?')} of {document.get('images_in_split', '?')} test images, {weights}"
        )
        attacks = "; ".join(_attack(record["attack"]) for record in records(document).values())
        found.setdefault(f"{images}. {attacks}.", []).append(run.label)
    several = len(found) > 1
    return "".join(
        f'<p class="note">{escape(", ".join(names)) + ": " if several else ""}{escape(text)}</p>'
        for text, names in found.items()
    )


def _attack(attack: Mapping[str, Any] | EvaluationAttack) -> str:
    fields = attack.as_json() if isinstance(attack, EvaluationAttack) else attack
    words = f"{fields.get('name')}: PGD, {fields.get('norm')}, eps {plain_value(fields.get('eps'))}, "
    words += f"{fields.get('steps')} steps of {plain_value(fields.get('step_size'))}"
    if fields.get("step") not in (None, "auto"):
        words += f" along the {fields['step']}"
    start = fields.get("random_start")
    words += ", from the image itself" if not start else f", random start ({start})"
    if (restarts := fields.get("restarts", 1)) != 1:
        words += f", {restarts} restarts"
    return words


def _sweeps(runs: Sequence[RunRecord]) -> str:
    """Curves, areas under them, and signs of masked gradients, of the runs that were swept."""
    text = ""
    for position, run in enumerate(runs):
        for protocol, document in run.sweeps.items():
            text += _head(run, runs)
            text += "".join(_warning(warning["text"]) for warning in document["warnings"])
            what = f"way {document['way'].upper()}" if "way" in document else str(document.get("model"))
            where = f"{run.label}, {what}, {document['images']} test images"
            text += "".join(
                sweep_table(document, norm, f"{where}, {norm}")
                + f'<p class="note">Percent of test images. {escape(grid_line(document, norm))}.</p>'
                for norm in document["worst_case"]
            )
            figures = "".join(
                _figure(
                    svg(
                        draw_accuracy_curves(document, norm, width=5.4),
                        f"{protocol}-{norm}-{position}",
                        f"Lines: accuracy of {run.label} against the {norm} radius of each attack",
                    ),
                    f"{where}: accuracy against the radius of the ball ({norm}), a line for each attack.",
                )
                for norm, worst in document["worst_case"].items()
                if len(worst["eps"]) > 2
            )
            text += f'<div class="pair">{figures}</div>' if figures else ""
    return text


def _paper(runs: Sequence[RunRecord], papers: Sequence[Sequence[PaperRow]]) -> str:
    text = ""
    titles: dict[str, None] = {}
    for run, rows in zip(runs, papers, strict=True):
        for row in rows:
            titles[row.paper] = None
            text += paper_table(run.label, row.comparison)
            if row.departures:
                text += f'<p class="note">{escape(run.label)} was trained otherwise than the paper: '
                text += f"{escape(', '.join(row.departures))}.</p>"
    if text:
        text = f'<p class="note">{escape("; ".join(titles))}; headings as the paper prints them.</p>' + text
    return text


def _curves(runs: Sequence[RunRecord]) -> str:
    if not any(run.series for run in runs):
        return _warning("No epoch has ended yet: metrics.jsonl has no line.")
    common = _lines_of(
        runs,
        "loss",
        "loss",
        "Training loss, the sum of its terms, mean over the images of an epoch.",
        log=True,
    )
    common += _lines_of(runs, "lr", "learning rate", "Learning rate at the end of each epoch.")
    common += _lines_of(
        runs, "images_per_second", "images/s", "Training images a second, attack and all, without the checks."
    )
    terms = [_terms(run, position) for position, run in enumerate(runs)]
    held_out = [_held_out(run, position) for position, run in enumerate(runs)]
    return f'<div class="triple">{common}</div><div class="pair">{"".join(terms + held_out)}</div>'


def _terms(run: RunRecord, position: int) -> str:
    terms = {
        name.removeprefix("terms/"): (curve.epochs, curve.values)
        for name, curve in run.series.items()
        if name.startswith("terms/")
    }
    if not terms:
        return ""
    return _figure(
        svg(
            draw_run_lines(terms, label="loss term", logarithmic=True),
            f"terms-{position}",
            f"Lines: the terms of the training loss of {run.label} over the epochs",
        ),
        f"{run.label}: what the loss adds up ({', '.join(terms)}).",
    )


def _lines_of(runs: Sequence[RunRecord], key: str, label: str, caption: str, *, log: bool = False) -> str:
    lines = {run.label: (run.series[key].epochs, run.series[key].values) for run in runs if key in run.series}
    if not lines:
        return ""
    drawing = draw_run_lines(lines, label=label, logarithmic=log, width=4.2)
    return _figure(
        svg(drawing, key.replace("_", "-"), f"Lines: {label} over the epochs of {', '.join(lines)}"), caption
    )


def _held_out(run: RunRecord, position: int) -> str:
    def by_way(kind: str) -> dict[str, list[float]]:
        return {way: run.series[f"{kind}/{way}"].values for way in "srn" if f"{kind}/{way}" in run.series}

    natural, attacked = by_way("natural"), by_way("adversarial")
    if not natural:
        return ""
    epochs = run.series[f"natural/{next(iter(natural))}"].epochs
    attack = run.config.attack
    return _figure(
        svg(
            draw_disentanglement_curve(epochs, natural, attacked, legend_below=True),
            f"held-out-{position}",
            f"Lines: held-out accuracy of the ways of {run.label} over the epochs, natural and attacked",
        ),
        f"{run.label}: accuracy on held-out images during training, natural (dashed) and under the training attack at "
        f"full strength ({attack.norm}, eps {plain_value(attack.eps)}, {attack.steps} steps), each way through itself.",
    )


def _images(runs: Sequence[RunRecord], looks: Sequence[Look | Missing]) -> str:
    text = ""
    for run, look in zip(runs, looks, strict=True):
        text += _head(run, runs)
        if isinstance(look, Missing):
            text += _warning(f"No images: {look.reason}")
            continue
        zero = "grey is no change" + (
            f", black and white a change by {plain_value(look.attack.strength.eps)}"
            if look.attack.strength.norm == "linf"
            else ", the largest change just reaches black or white"
        )
        caption = (
            f"Test images (numbers are positions in the split of {look.split}), each attacked through every trained "
            f"way, with what the way takes it for; below it what was added, magnified "
            f"{look.examples.magnification:.3g} times ({zero}), and the gradient of that way's cross entropy with "
            f"respect to the natural image, clipped to its mean ± 3 standard deviations and scaled to [0, 1] image by "
            f"image. Attack: {_attack(look.attack)}; {look.attack_source}. "
            f"Weights: {look.checkpoint}, epoch {look.epoch}."
        )
        text += _figure(example_tables(look), caption)
    return text


def _classes(runs: Sequence[RunRecord], looks: Sequence[Look | Missing]) -> str:
    text = ""
    for position, (run, look) in enumerate(zip(runs, looks, strict=True)):
        if isinstance(look, Missing) or look.confusions is None:
            continue
        found = look.confusions
        natural = {way: _diagonal(matrix) for way, matrix in found.natural.items()}
        attacked = {way: _diagonal(matrix) for way, matrix in found.attacked.items()}
        chosen = _weakest_and_strongest(attacked)
        names = [look.classes[k] for k in chosen]
        some = (
            ""
            if len(chosen) == len(look.classes)
            else f" Of {len(look.classes)} classes the weakest and strongest."
        )
        on = f"{found.images} of {look.split} test images, {look.attack.name}, {look.checkpoint}"
        text += _head(run, runs)
        text += _figure(
            svg(
                draw_class_accuracy(
                    names,
                    {way: [values[k] for k in chosen] for way, values in natural.items()},
                    {way: [values[k] for k in chosen] for way, values in attacked.items()},
                ),
                f"classes-{position}",
                f"Accuracy of each class for each way of {run.label}, natural and attacked",
            ),
            f"Accuracy of each class on natural images (open) and attacked through the way itself (full): {on}.{some}",
        )
        for kind, matrices in (("attacked", found.attacked), ("natural", found.natural)):
            drawing = _figure(
                svg(
                    draw_confusion_matrix(look.classes, matrices),
                    f"confusion-{kind}-{position}",
                    f"Confusion matrices of the ways of {run.label} on {kind} images",
                ),
                f"Confusions on {kind} images: a row is a true class, a column what it was taken for; the deeper the "
                f"colour, the larger the share of the class. {on[0].upper()}{on[1:]}.",
            )
            text += drawing if kind == "attacked" else _more("Confusions on natural images", drawing)
    return text


def _diagonal(matrix: torch.Tensor) -> list[float | None]:
    """Accuracy of each class; None for one without images."""
    hits, totals = matrix.diagonal().tolist(), matrix.sum(dim=1).tolist()
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]


def _weakest_and_strongest(attacked: Mapping[str, Sequence[float | None]]) -> list[int]:
    """All classes, or of many those that the robust way (else the first) keeps least and best under attack."""
    values = attacked.get("r") or next(iter(attacked.values()))
    if len(values) <= MOST_CLASSES:
        return list(range(len(values)))
    order = sorted((k for k, value in enumerate(values) if value is not None), key=lambda k: values[k])
    half = MOST_CLASSES // 2
    return order if len(order) <= MOST_CLASSES else order[:half] + order[-half:]


def _inversions(runs: Sequence[RunRecord], looks: Sequence[Look | Missing]) -> str:
    text = ""
    for run, look in zip(runs, looks, strict=True):
        if isinstance(look, Missing) or not look.inversions:
            continue
        caption = (
            f"Images found from uniform noise, whose representation by one encoder is near that of the image above: "
            f"{look.inversion_steps:,} steps of length 1 down the unit gradient of ||g(x) − g(image)|| / ||g(image)||, "
            f"clipped to [0, 1] after each; the distance that is left stands below. What is seen is what the encoder "
            f"keeps of the image."
        )
        text += _head(run, runs) + _figure(inversion_tables(look), caption)
    return text


def _throughput(runs: Sequence[RunRecord]) -> str:
    lines = [line for line in throughput_lines(runs) if any(value is not None for value in line.values)]
    if not lines:
        return ""
    note = '<p class="note">Of training, on the machines below; later runs with the ratio to the first.</p>'
    return note + throughput_table(lines, _labels(runs))


def _configuration(runs: Sequence[RunRecord]) -> str:
    lines = config_lines(runs)
    if len(runs) == 1:
        return field_list(lines)
    differing = [line for line in lines if line.differs]
    text = '<p class="note">Fields in which the runs differ, by their flags.</p>'
    text += plain_table(differing, _labels(runs)) if differing else "<p>The configurations are the same.</p>"
    return text + _more(f"All {len(lines)} fields", plain_table(lines, _labels(runs)))


def _machine(runs: Sequence[RunRecord]) -> str:
    lines = machine_lines(runs)
    return plain_table(lines, _labels(runs)) if len(runs) > 1 else field_list(lines, long=True)


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    return [run.label for run in runs]


def _head(run: RunRecord, runs: Sequence[RunRecord]) -> str:
    return f"<h3>{escape(run.label)}</h3>" if len(runs) > 1 else ""


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def _more(title: str, content: str) -> str:
    return f'<details class="more"><summary>{escape(title)}</summary>{content}</details>'


def _warning(text: str) -> str:
    return f'<p class="warn">{escape(text)}</p>'
