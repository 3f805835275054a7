"""Tables 4 and 5 for the terminal: TNR at 95 % TPR and AUROC, a row for each detector and part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from robustfast.evaluation.tables import percent

__all__ = ["detection_tables"]

_DETECTORS = {"kd": "KD", "lid": "LID", "md": "MD"}
_PARTS = {"x": "", "g": " (G)", "r": " (R)"}
_METRICS = {"tnr": "TNR at 95 % TPR", "auroc": "AUROC"}
_ATTACKS = {"fgsm": "FGSM", "bim": "BIM", "cw": "C&W", "pgd-linf": "PGD linf", "pgd-l2": "PGD l2"}

Numbers = Mapping[str, Any]


def detection_tables(numbers: Numbers, run: str) -> list[Table]:
    """What was tried, then TNR and AUROC for known and for unseen attacks, each a table that fits into 80 columns.

    Args:
        numbers: of `robustfast.evaluation.cdvae.detection.detected`.
        run: its name.
    """
    return [
        _samples(numbers, run),
        *_detection(numbers["known"], numbers["mean"], f"{run}: detection"),
        *_detection(
            numbers["unseen"],
            numbers["unseen_mean"],
            f"{run}: unseen attacks, by the regression of {_ATTACKS[numbers['unseen_from']]}",
        ),
    ]


def _samples(numbers: Numbers, run: str) -> Table:
    # Tight, so that nine columns fit into the 80 characters of a plain terminal or log.
    table = Table(
        title=f"{run}: what detectors are tried on (accuracy in percent, noise and l2 in normalised pixels)",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
    )
    for heading in ("attack", "part"):
        table.add_column(heading, no_wrap=True)
    for heading in ("clean", "noisy", "attacked", "kept", "noise", "its l2", "attack's l2"):
        table.add_column(heading, justify="right", no_wrap=True)
    for attack, parts in numbers["samples"].items():
        for number, (part, own) in enumerate(parts.items()):
            table.add_row(
                "" if number else _ATTACKS[attack],
                {"x": "x", "g": "G(x)", "r": "R(x)"}[part],
                *(percent(own[key]) for key in ("clean", "noisy", "attacked")),
                str(own["kept"]),
                f"{own['noise']:.4f}",
                f"{own['noise_l2']:.3f}",
                f"{own['attack_l2']:.3f}",
            )
    return table


def _detection(found: Numbers, means: Numbers, title: str) -> list[Table]:
    """A table for each metric; why there is no number stands under the last one."""
    tables = [_metric(found, means, metric, title) for metric in _METRICS]
    reasons = dict.fromkeys(
        cell["reason"]
        for name, by_part in means.items()
        for part in by_part
        for cell in (by_detector[name][part] for by_detector in found.values())
        if "reason" in cell
    )
    if reasons:
        tables[-1].caption = "\n".join(f"-: {line}" for line in _distinct(reasons))
        tables[-1].caption_justify = "left"
    return tables


def _metric(found: Numbers, means: Numbers, metric: str, title: str) -> Table:
    table = Table(title=f"{title}, {_METRICS[metric]} (percent)", box=box.SIMPLE_HEAD)
    table.add_column("detector", no_wrap=True)
    for attack in found:
        table.add_column(_ATTACKS[attack], justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for name, by_part in means.items():
        table.add_section()
        for part, mean in by_part.items():
            cells = [by_detector[name][part] for by_detector in found.values()]
            shown = (percent(None if cell["auroc"] is None else cell[metric]) for cell in [*cells, mean])
            table.add_row(f"{_DETECTORS[name]}{_PARTS[part]}", *shown)
    return table


def _distinct(reasons: Iterable[str]) -> list[str]:
    """The same reason for several attacks or counts of images as one line: "3 to 60 images ..."."""
    counts: dict[str, list[int]] = {}
    for reason in reasons:
        own = re.sub(rf"^({'|'.join(_ATTACKS)}): ", "", reason)
        number, text = re.match(r"(\d*)(.*)", own, re.DOTALL).groups()  # type: ignore[union-attr]
        counts.setdefault(text, []).extend([int(number)] if number else [])
    lines = []
    for text, found in counts.items():
        low, high = (min(found), max(found)) if found else ("", "")
        lines.append(f"{low}{text}" if low == high else f"{low} to {high}{text}")
    return lines
