"""Section IV-E: adversarial images by the discriminator on domain-specific features, and where that ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robustfast.attacks import RandomNoise
from robustfast.attacks.draws import signs, uniform
from robustfast.evaluation.auroc import auroc
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import Pieces, Work, pieces
from robustfast.evaluation.rfd.judge import Judge, judge, judged_clean, no_discriminator
from robustfast.evaluation.rfd.rates import rates
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.evaluation.sweep_tables import eps_labels
from robustfast.evaluation.tables import percent
from robustfast.seeds import derive
from robustfast.visualization.detection_curve import detection_curve

__all__ = ["PART", "SHARES", "shuffled"]

SHARES = (1 / 8, 2 / 8, 3 / 8, 4 / 8, 1.0)
"""Of the training attack's eps: 1, 2, 3, 4 and 8 of 255 at the paper's 8/255; the largest radius of training is added,
12/255 there."""


def shuffled(x: Tensor, x_adv: Tensor, index: Tensor, *, seed: int) -> Tensor:
    """Noise of an attack's own size: its changes at other pixels of their image and with signs of their own.

    Every norm of the perturbation stays what it was, as long as no change is longer than half of [0, 1]: where a sign
    leads out of the box it is the other one.

    Args:
        x: images [B, ...] in [0, 1].
        x_adv: the attack's, likewise.
        index: int64 [B], positions that key the draws.
        seed: of the draws.

    Returns:
        Images like `x`.
    """
    size = (x_adv - x).abs().flatten(1)
    order = uniform(index, size.shape[1:], seed=derive(seed, "places"), dtype=torch.float64).argsort(1)
    moved = size.gather(1, order).reshape(x.shape)
    change = signs(index, tuple(x.shape[1:]), seed=derive(seed, "signs"), dtype=x.dtype) * moved
    outside = (x + change < 0) | (x + change > 1)
    return (x + torch.where(outside, -change, change)).clamp(0, 1)


def _make(context: PartContext) -> PartResult:
    run, seed = context.run, context.request.seed
    both = judge(run)
    way = run.model.way(run.config.main_way)
    training = run.config.attack.eps
    shares = (*SHARES, *({run.config.objective.eps_factor} - {1.0}))
    radii = {share: share * training for share in shares}
    attack = pgd(way, training, seed=seed)
    with pieces(context, PART.name) as kept:
        clean = kept.of("clean", _judged(both), models=[both])
        trained = kept.of(
            "training eps",
            _with_noise(both, attack, training, seed),
            models=[both],
            eps=training,
        )
        by_eps = {
            share: trained if share == 1.0 else _attacked(kept, both, way, eps, "linf", seed)
            for share, eps in radii.items()
        }
        norms = {norm: radius(run, norm) for norm in ("l2", "l1")}
        by_norm = {norm: _attacked(kept, both, way, eps, norm, seed) for norm, eps in norms.items()}
    score = clean["score"]
    labels = dict(zip(radii, eps_labels(list(radii.values())), strict=True))
    numbers: dict[str, Any] = {
        "positive": "adversarial",
        "attack": "PGD-20 on the robust way alone",
        # At other radii and in other norms the step is as large a part of eps.
        "settings": described(attack),
        "training_eps": _found(score, trained, training),
        "by_eps": {label: _found(score, by_eps[share], radii[share]) for share, label in labels.items()},
        "other_norms": {norm: _found(score, by_norm[norm], eps) for norm, eps in norms.items()},
        "noise": {
            name: {
                "flagged": (~judged_clean(trained[name])).double().mean().item(),
                "auroc": auroc(score, trained[name]),
            }
            for name in ("shuffled", "uniform")
        },
    }
    figure = detection_curve(
        list(radii.values()),
        {key: [numbers["by_eps"][label][key] for label in labels.values()] for key in ("tpr", "auroc")},
        context.figure("detection"),
        title=f"{context.path.name}: discriminator on domain-specific features",
        trained=training,
    )
    return PartResult(numbers, [_table(context, numbers)], [figure])


def _judged(both: Judge) -> Work:
    @torch.no_grad()
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        logits, score = both.classify(x)
        return {"score": score, "fooled": logits.argmax(1) != y}

    return work


def _attacked(
    kept: Pieces, both: Judge, way: Callable[[Tensor], Tensor], eps: float, norm: str, seed: int
) -> dict[str, Tensor]:
    attack = pgd(way, eps, norm=norm, seed=seed)

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        return dict(_judged(both)(attack(x, y, positions), y, positions))

    return kept.of(f"{norm} {eps:.4g}", work, models=[both], eps=eps)


def _with_noise(both: Judge, attack: Callable[..., Tensor], eps: float, seed: int) -> Work:
    noise = RandomNoise(both, eps=eps, seed=seed)

    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        x_adv = attack(x, y, positions)
        like = {
            "shuffled": shuffled(x, x_adv, positions, seed=derive(seed, "shuffled")),
            "uniform": noise(x, y, positions),
        }
        told = _judged(both)
        return {
            **told(x_adv, y, positions),
            **{name: told(images, y, positions)["score"] for name, images in like.items()},
        }

    return work


def _found(clean: Tensor, attacked: dict[str, Tensor], eps: float) -> dict[str, float | None]:
    """Rates over all attacked images, and over those of them alone that fool the classifier."""
    fooling = attacked["score"][attacked["fooled"]]
    return {
        "eps": eps,
        **rates(clean, attacked["score"]),
        "fooled": attacked["fooled"].double().mean().item(),
        "tpr_of_fooling": rates(clean, fooling)["tpr"] if len(fooling) else None,
    }


def _table(context: PartContext, numbers: dict[str, Any]) -> Table:
    table = Table(
        title=f"{context.path.name}: detection by the discriminator, PGD on the robust way alone (percent)"
    )
    table.add_column("images")
    for heading in ("TPR", "TNR", "AUROC", "TPR of those that fool"):
        table.add_column(heading, justify="right")

    def row(label: str, found: dict[str, float | None]) -> None:
        table.add_row(label, *(percent(found[key]) for key in ("tpr", "tnr", "auroc", "tpr_of_fooling")))

    for label, found in numbers["by_eps"].items():
        row(f"linf {label}" + (" (training)" if found == numbers["training_eps"] else ""), found)
    table.add_section()
    for norm, found in numbers["other_norms"].items():
        row(f"{norm} {found['eps']:g}", found)
    table.add_section()
    for name, heading in {
        "shuffled": "noise of equal norms",
        "uniform": "noise, uniform in the ball",
    }.items():
        found = numbers["noise"][name]
        table.add_row(
            heading,
            percent(found["flagged"]),
            percent(numbers["training_eps"]["tnr"]),
            percent(found["auroc"]),
            "-",
        )
    table.caption = "Noise should not be flagged: what is, the discriminator takes for an attack"
    return table


PART = Part(
    "detection",
    "adversarial images by the discriminator, at eps, norms and noise it was not trained with (IV-E)",
    _make,
    unfit=no_discriminator,
)
