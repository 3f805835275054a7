"""The distance between clean and attacked features that the discriminator sees, beside the gap in error (figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

from robustfast.attacks import Attack, eval_mode
from robustfast.evaluation.afd.grids import Grid, sweeps
from robustfast.evaluation.afd.taps import Tap, run_label, tap
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import Work, pieces
from robustfast.evaluation.sweep_batches import pulled
from robustfast.evaluation.tables import percent
from robustfast.models import OneWay
from robustfast.training.run_folder import Run
from robustfast.training.run_objective import run_objective
from robustfast.visualization.hdh_curve import hdh_curve
from robustfast.visualization.radii import radius_name, radius_unit

__all__ = ["HDH", "Separation", "alpha", "correlation", "distance", "fitted_threshold", "separation"]

ATTACK = "pgd-linf"
"""Whose curve is drawn: the attack of figure 3a."""
LEFT_OUT = ("aa",)
"""AutoAttack gives back the image itself wherever it fails: mixtures of two kinds of features, at the longest run."""

_KINDS = {"fixed": "0", "fitted": "fitted on every other image"}


def alpha(clean: Tensor, attacked: Tensor, threshold: float) -> float:
    """Share of clean logits [N] above the threshold plus share of attacked ones [M] at or below it (equation 6)."""
    return (clean > threshold).double().mean().item() + (attacked <= threshold).double().mean().item()


def distance(alpha: float) -> float:
    """``2 |alpha - 1|``, in [0, 2] (equation 6): 0 where the discriminator cannot tell, 2 where it always can."""
    return 2 * abs(alpha - 1)


def fitted_threshold(clean: Tensor, attacked: Tensor) -> float:
    """The threshold of the largest `alpha`, half-way between two logits; the first of several.

    Logits [N] and [M] that are all alike have none between them: then it is their value, and alpha is 1.
    """
    values, which = torch.cat([clean, attacked]).double().unique(return_inverse=True)
    if len(values) == 1:
        return values.item()
    counts = torch.zeros(2, len(values), dtype=torch.float64)
    counts[0].index_add_(0, which[: len(clean)], torch.ones(len(clean), dtype=torch.float64))
    counts[1].index_add_(0, which[len(clean) :], torch.ones(len(attacked), dtype=torch.float64))
    below = counts.cumsum(1)
    found = 1 - below[0] / len(clean) + below[1] / len(attacked)
    best = int(found[:-1].argmax())
    return ((values[best] + values[best + 1]) / 2).item()


@dataclass(frozen=True)
class Separation:
    """What a discriminator makes of clean and attacked images, by the second half of them.

    Attributes:
        fixed: alpha at the threshold 0, where a discriminator that was trained by cross entropy decides.
        fitted: alpha at `threshold`.
        threshold: that of the largest alpha on the first half; a Wasserstein critic has no zero of its own.
    """

    fixed: float
    fitted: float
    threshold: float


def separation(clean: Tensor, attacked: Tensor) -> Separation:
    """From the logits [N] of images and those [N] of the same images under attack: every other one is for fitting."""
    threshold = fitted_threshold(clean[::2], attacked[::2])
    clean, attacked = clean[1::2], attacked[1::2]
    return Separation(alpha(clean, attacked, 0.0), alpha(clean, attacked, threshold), threshold)


def correlation(distances: Sequence[float], gaps: Sequence[float]) -> dict[str, float | int | None]:
    """Pearson's and Spearman's coefficients with their p values (two-sided); None where one side is constant or there
    are fewer than three points."""
    found: dict[str, float | int | None] = {"points": len(gaps)}
    constant = len(set(distances)) < 2 or len(set(gaps)) < 2
    for name, test in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        result = None if constant or len(gaps) < 3 else test(distances, gaps)
        found[name] = None if result is None else float(result.statistic)
        found[f"{name}_p"] = None if result is None else float(result.pvalue)
    return found


class _Once:
    """An attack that looks for the nearest image: run once, and what it found kept for every radius."""

    def __init__(self, attack: Attack, norm: str) -> None:
        self._attack, self._norm = attack, norm
        self._found: dict[tuple[int, ...], Tensor] = {}

    def within(self, eps: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What it found, pulled into the ball as Foolbox does."""

        def attack(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
            key = tuple(index.tolist())
            if key not in self._found:
                self._found[key] = self._attack(x, y, index).cpu()
            return pulled(self._found[key].to(x.device), x, self._norm, eps)

        return attack


def _at_radii(
    grid: Grid, model: Callable[[Tensor], Tensor], seed: int
) -> Iterator[Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The attack at each of its radii but 0."""
    if grid.named.minimal:
        once = _Once(grid.named.build(model, None, seed=seed), grid.named.norm)
        yield from map(once.within, grid.printed[1:])
    else:
        for eps in grid.printed[1:]:
            yield grid.named.build(model, eps, seed=seed)


def _make(context: PartContext) -> PartResult:
    """Kept batch by batch: an interruption loses one.

    Numbers: of the attack of figure 3a "eps", "gap" and the distances "fixed" and "fitted"; "per_attack" by name its
    norm, settings, eps, gaps and by threshold alpha and distance; "correlation" of distance and gap over all of these
    but for eps = 0, by threshold."""
    discriminator = run_objective(context.run).discriminator  # type: ignore[attr-defined]
    where = tap(context.run.model)
    grids = {name: grid for name, grid in sweeps(context.run.config.dataset).items() if name not in LEFT_OUT}
    per_attack: dict[str, dict[str, Any]] = {}
    with pieces(context, HDH.name) as kept:

        def seen(attack: Callable[..., Tensor] | None, name: str, **settings: Any) -> tuple[Tensor, float]:
            """The discriminator's logits [N], and the classifier's error."""
            found = kept.of(name, _judged(where, discriminator, attack), models=[discriminator], **settings)
            return found["score"].double(), 1 - found["right"].double().mean().item()

        clean, clean_error = seen(None, "clean")
        for name, grid in grids.items():
            attacks = _at_radii(grid, where.model, context.request.seed)
            settings = grid.settings(where.model, seed=context.request.seed)
            attacked = [
                (clean, clean_error),
                *(
                    seen(attack, f"{name} {eps:.4g}", eps=eps, given=settings)
                    for eps, attack in zip(grid.printed[1:], attacks, strict=True)
                ),
            ]
            per_attack[name] = {
                "norm": grid.named.norm,
                "settings": settings,
                "eps": list(grid.printed),
                "gap": [error - clean_error for _, error in attacked],
                **_by_threshold([separation(clean, logits) for logits, _ in attacked]),
            }
    own = per_attack[ATTACK]
    numbers = {
        "tap": where.where,
        "images": context.images,
        "judged_on": len(clean[1::2]),
        "clean_error": clean_error,
        "attack": ATTACK,
        **{key: own[key] for key in ("norm", "eps", "gap")},
        **{kind: own[kind]["distance"] for kind in _KINDS},
        "per_attack": per_attack,
        "correlation": {kind: _over_all(per_attack, kind) for kind in _KINDS},
    }
    title = f"{run_label(context.run)}: clean and attacked features, {context.images} test images"
    figure = hdh_curve(numbers, context.figure("hdh"), title=title)
    return PartResult(numbers, [_curve_table(numbers), _correlation_table(numbers)], [figure])


def _judged(
    where: Tap, discriminator: nn.Module, attack: Callable[[Tensor, Tensor, Tensor], Tensor] | None
) -> Work:
    """What the discriminator says of the features, given the true labels, and who is classified right; in eval mode."""

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = x if attack is None else attack(x, y, positions)
        with eval_mode(where.model), eval_mode(discriminator), torch.no_grad():
            score = discriminator(where.feature(images), y).flatten()
            return {"score": score, "right": where.model(images).argmax(1) == y}

    return work


def _by_threshold(found: Sequence[Separation]) -> dict[str, dict[str, list[float]]]:
    by_kind = {kind: [getattr(one, kind) for one in found] for kind in _KINDS}
    both = {
        kind: {"alpha": alphas, "distance": [distance(value) for value in alphas]}
        for kind, alphas in by_kind.items()
    }
    both["fitted"]["threshold"] = [one.threshold for one in found]
    return both


def _over_all(per_attack: Mapping[str, Mapping[str, Any]], kind: str) -> dict[str, float | int | None]:
    # At eps = 0 every attack is the same point, (0, 0).
    distances = [value for attack in per_attack.values() for value in attack[kind]["distance"][1:]]
    gaps = [value for attack in per_attack.values() for value in attack["gap"][1:]]
    return correlation(distances, gaps)


def _curve_table(numbers: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"Distance of clean and attacked features in [0, 2] and the gap in error, under {ATTACK}",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("eps")
    for heading in ("gap (percent)", "threshold 0", "fitted"):
        table.add_column(heading, justify="right")
    unit, _ = radius_unit(numbers["eps"], numbers["norm"])
    for eps, gap, fixed, fitted in zip(
        *(numbers[key] for key in ("eps", "gap", "fixed", "fitted")), strict=True
    ):
        table.add_row(radius_name(eps, unit), percent(gap, signed=True), f"{fixed:.3f}", f"{fitted:.3f}")
    return table


def _correlation_table(numbers: Mapping[str, Any]) -> Table:
    attacks = ", ".join(numbers["per_attack"])
    table = Table(
        title=f"Correlation of distance and gap over {numbers['correlation']['fixed']['points']} points ({attacks})",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("threshold")
    for heading in ("Pearson", "p", "Spearman", "p"):
        table.add_column(heading, justify="right")
    for kind, name in _KINDS.items():
        found = numbers["correlation"][kind]
        cells = (
            "-" if found[key] is None else f"{found[key]:{form}}"
            for key, form in (
                ("pearson", ".3f"),
                ("pearson_p", ".1e"),
                ("spearman", ".3f"),
                ("spearman_p", ".1e"),
            )
        )
        table.add_row(name, *cells)
    return table


def _without_discriminator(run: Run) -> str | None:
    objective = run_objective(run)
    if isinstance(run.model, OneWay) and "discriminator" in objective.networks():
        return None
    return (
        f"{run.config.method} trains no discriminator of its network's features, as afd_wgan and afd_dcgan do"
    )


HDH = Part(
    "hdh",
    "distance of clean and attacked features beside the gap in error (AFD, figure 3)",
    _make,
    unfit=_without_discriminator,
)
