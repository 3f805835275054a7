"""Table 6: images that attack a plain classifier alone, classified by it and by what defends it.

The attacker knows the classifier D-hat of ``--source`` and nothing that stands before or beside it. Judged are

- ``undefended``: D-hat itself;
- of a run that splits images, ``d_g``, the classifier of G(x), where the run or one of ``--against`` has it, and
  ``d_hat``, D-hat on G(x);
- of any other run ``own``, its main way: a denoiser before the classifier, or a classifier that was trained robust.

The paper's rows of adversarial training stand lower than ``own`` would: its tables attack these classifiers themselves.
That is ``itself``, of runs without a denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.attacks import PGDC, Attack, MarginPGD, StAdv
from robustfast.evaluation.attack_names import NamedAttack
from robustfast.evaluation.cdvae.attacked import check_classes
from robustfast.evaluation.cdvae.classifiers import classifiers, no_generator, split_network
from robustfast.evaluation.cdvae.threat import l2, linf
from robustfast.evaluation.detectors.parts import part_model
from robustfast.evaluation.model_digests import weights_digest
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.tables import percent
from robustfast.models import Denoised
from robustfast.training.run_folder import Run

__all__ = ["HEADINGS", "KAPPA", "PART", "STADV", "STEPS", "attacks", "judges"]

STEPS = 100
KAPPA = 10.0
"""By how much an image of C&W has to lead, after which it stays where it is: that of the paper's code where it
defends."""
STADV = 0.05
"""The flow's bound, in units in which an image spans -1 to 1."""

HEADINGS = {
    "clean": "clean",
    "pgd-linf": "PGD linf",
    "pgd-l2": "PGD l2",
    "cw-linf": "C&W linf",
    "cw-l2": "C&W l2",
    "stadv": "StAdv",
}
"""Column of the numbers to that of the table."""

_ROWS = {
    "undefended": "undefended",
    "d_g": "D_G(G(x))",
    "d_hat": "D-hat(G(x))",
    "own": "this run",
    "itself": "this run, attacked itself",
}

Model = Callable[[Tensor], Tensor]


def attacks(model: Model, run: Run, *, steps: int = STEPS, seed: int = 0) -> dict[str, Attack]:
    """The attacks of the table on a model, by column, at the radii of a run's images.

    PGD and C&W, which is PGD on the margin, take steps of eps / sqrt(steps).
    """
    found: dict[str, Attack] = {}
    for norm, eps in {"linf": linf(run), "l2": l2(run)}.items():
        found[f"pgd-{norm}"] = PGDC(model, eps, steps, norm=norm, seed=seed)
        found[f"cw-{norm}"] = MarginPGD(
            model, eps, kappa=KAPPA, steps=steps, norm=norm, relative_step=steps**-0.5, seed=seed
        )
    found["stadv"] = StAdv(model, eps=STADV, steps=steps, seed=seed)
    return {column: found[column] for column in HEADINGS if column in found}


def judges(context: PartContext, source: Model) -> dict[str, Model]:
    """What classifies the images, by row: models of images in [0, 1].

    Args:
        context: of the part.
        source: D-hat.

    Raises:
        UserError: as of `robustfast.evaluation.cdvae.classifiers.classifiers`.
    """
    run = context.run
    if no_generator(run) is not None:
        return {"undefended": source, "own": run.model.way(run.config.main_way)}
    network = split_network(run)
    rows: dict[str, Model] = {"undefended": source}
    if (classifier := classifiers(context).get("g")) is not None:
        rows["d_g"] = part_model(network, "g", classifier)
    rows["d_hat"] = part_model(network, "g", lambda part: source(network.normalisation.inverse(part)))
    return rows


def _make(context: PartContext) -> PartResult:
    run, source = context.run, context.source()
    check_classes(context, source, run.model)
    rows = judges(context, source)
    strength = {"steps": context.steps(STEPS), "seed": context.request.seed}
    against = attacks(source, run, **strength)
    own = rows.get("own")
    with pieces(context, PART.name) as kept:

        def accuracies(judged: Mapping[str, Model], made: Mapping[str, Attack]) -> dict[str, Any]:
            numbers: dict[str, Any] = {row: {} for row in judged}
            for column, attack in {"clean": None, **made}.items():
                right = kept.of(
                    f"{column} of {', '.join(judged)}",
                    _judged(judged, attack),
                    models=[source, *judged.values()],
                    attack=None if attack is None else _described(column, attack),
                )
                for row in judged:
                    numbers[row][column] = right[row].double().mean().item()
            return numbers

        numbers = accuracies(rows, against)
        if (
            own is not None
            and not isinstance(run.model, Denoised)
            and weights_digest(own) != weights_digest(source)
        ):
            numbers |= accuracies({"itself": own}, attacks(own, run, **strength))
    table = Table(
        title=f"{context.path.name}: attacks on {context.request.source}, {context.images} images (percent)"
    )
    table.add_column("")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right")
    for row, found in numbers.items():
        table.add_row(_ROWS[row], *(percent(found[column]) for column in HEADINGS))
    numbers["attacks"] = {column: _described(column, attack) for column, attack in against.items()}
    return PartResult(numbers, [table])


def _judged(rows: Mapping[str, Model], attack: Attack | None) -> Callable[..., dict[str, Tensor]]:
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = x if attack is None else attack(x, y, positions)
        with torch.no_grad():
            return {row: judge(images).argmax(1) == y for row, judge in rows.items()}

    return work


def _described(column: str, attack: Attack) -> dict[str, Any]:
    """Every setting of an attack, defaults included, as plain values for the file."""
    return NamedAttack(column, attack.name, attack.norm if attack.norms else attack.name).as_json(attack)


PART = Part(
    "grey-box",
    "attacks on the plain classifier alone, judged by it and by what defends it (table 6)",
    _make,
    needs=("source",),
    wants={"source": "D-hat (a run of cdvae-x)"},
    takes=("against", "steps"),
)
