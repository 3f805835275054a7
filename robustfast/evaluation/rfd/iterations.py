"""Figure 6: accuracy under PGD of 10 to 100 steps, which keeps falling a little where no gradient is masked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import Work, pieces
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.evaluation.tables import percent
from robustfast.training.run_folder import Run
from robustfast.visualization.iteration_curve import iteration_curve

__all__ = ["PART", "STEPS", "along_the_way"]

STEPS = tuple(range(10, 101, 10))


def along_the_way(
    model: Callable[[Tensor], Tensor], eps: float, *, steps: tuple[int, ...] = STEPS, seed: int = 0
) -> Work:
    """Which images are right as they are and after so many steps of PGD, as `Pieces.of` takes it.

    One attack of the largest number of steps passes through the results of all the others: each goes on from where the
    last one ended. The numbers of steps rise by the same amount.
    """
    (length,) = {after - before for before, after in zip((0, *steps), steps, strict=False)}
    attack = pgd(model, eps, steps=length, seed=seed)

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        right = _right(model, x, y)
        found, here = {}, None
        for number in steps:
            here = attack(x, y, positions, start=here)
            # As in the tables, an image that is wrong from the start is not made right by an attack.
            found[str(number)] = right & _right(model, here, y)
        return found

    return work


@torch.no_grad()
def _right(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def _make(context: PartContext) -> PartResult:
    eps, seed = radius(context.run), context.request.seed
    runs = {context.path.name: context.run}
    for label, run in context.others().items():
        if run.config.dataset != context.run.config.dataset:
            raise UserError(
                f"--against {label}: a run on {run.config.dataset}, expected one on {context.run.config.dataset}"
            )
        runs[label if label != context.path.name else f"{label} (against)"] = run
    with pieces(context, PART.name) as kept:
        curves = {label: _curve(kept.of, run, eps, seed) for label, run in runs.items()}
    own, *others = curves.values()
    table = Table(title=f"PGD at eps {eps:.4g} by steps, {context.images} images (percent)")
    table.add_column("steps", justify="right")
    for label in curves:
        table.add_column(label, justify="right")
    for number, values in zip(STEPS, zip(own, *others, strict=True), strict=True):
        table.add_row(str(number), *map(percent, values))
    figure = iteration_curve(
        STEPS,
        curves,
        context.figure("iterations"),
        title=f"{context.run.config.dataset}, PGD at eps {eps:.4g}",
    )
    numbers = {
        "steps": list(STEPS),
        "accuracy": own,
        "eps": eps,
        "step_size": eps / 4,
        "attack": described(pgd(_way(context.run), eps, steps=STEPS[-1], seed=seed)),
        "others": dict(zip(list(curves)[1:], others, strict=True)),
    }
    return PartResult(numbers, [table], [figure])


def _way(run: Run) -> Callable[[Tensor], Tensor]:
    return run.model.way(run.config.main_way)


def _curve(of: Callable[..., dict[str, Tensor]], run: Run, eps: float, seed: int) -> list[float]:
    model = _way(run)
    right = of(
        "iterations", along_the_way(model, eps, steps=STEPS, seed=seed), models=[model], eps=eps, steps=STEPS
    )
    return [right[str(number)].double().mean().item() for number in STEPS]


PART = Part("iterations", "PGD of 10 to 100 steps (figure 6), beside other runs", _make, takes=("against",))
