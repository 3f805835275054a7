"""Table 3: classifiers trained on one part of the images, tested on every part."""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.cdvae.classifiers import (
    SHOWN,
    classifiers,
    no_generator,
    parts_of,
    promised,
    split_network,
)
from robustfast.evaluation.parts import Part, PartContext, PartResult, Request
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.tables import percent
from robustfast.training.run_folder import Run

__all__ = ["PART", "TOP"]

TOP = 5
"""Of how many classes, those with the largest logits, the true one has to be one; of fewer classes it always is."""

_NEEDS = "needs classifiers of two parts: name runs of cdvae-x and cdvae-g of this run's G with --source and --against"


class _Cross(Part):
    """The part, which is left out where the request names no classifier of a second part."""

    def obstacle(self, run: Run, request: Request) -> str | None:
        reason = super().obstacle(run, request)
        if reason is not None:
            return reason
        return None if len(set(parts_of(split_network(run))) | promised(request)) > 1 else _NEEDS


def _make(context: PartContext) -> PartResult:
    network, found = split_network(context.run), classifiers(context)
    if len(found) < 2:
        raise UserError(f"part {PART.name}: {_NEEDS}")

    @torch.no_grad()
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        split = network.split(x)
        right = {}
        for trained, classifier in found.items():
            for tested in SHOWN:
                logits = classifier(getattr(split, tested))
                best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices == y[:, None]
                right[f"{trained} {tested} top1"] = best[:, 0]
                right[f"{trained} {tested} top5"] = best.any(1)
        return right

    with pieces(context, PART.name) as kept:
        right = kept.of("parts", work, models=list(found.values()), parts=list(found))
    numbers: dict[str, Any] = {
        trained: {
            tested: {
                top: right[f"{trained} {tested} {top}"].double().mean().item() for top in ("top1", "top5")
            }
            for tested in SHOWN
        }
        for trained in SHOWN
        if trained in found
    }
    table = Table(title=f"{context.path.name}: trained on a part, tested on each: top-1 (top-5) in percent")
    table.add_column("trained on")
    for heading in SHOWN.values():
        table.add_column(f"tested on {heading}", justify="right")
    for trained, row in numbers.items():
        cells = (f"{percent(cell['top1'])} ({percent(cell['top5'])})" for cell in row.values())
        table.add_row(SHOWN[trained], *cells)
    missing = [heading for part, heading in SHOWN.items() if part not in found]
    if missing:
        table.caption = f"no classifier of {' or '.join(missing)} was named"
    return PartResult(numbers, [table])


PART = _Cross(
    "cross",
    "classifiers of x, G(x) and R(x), tested on each of them (table 3)",
    _make,
    unfit=no_generator,
    takes=("source", "against"),
)
