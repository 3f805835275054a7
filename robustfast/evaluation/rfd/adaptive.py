"""An attack that knows of the discriminator: it wants to fool the classifier and to pass as clean at once.

Not in the paper, which attacks the classifier alone. A detector that is differentiable is expected to fall to it
(Carlini and Wagner 2017, arXiv:1705.07263): what stands here is how far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from robustfast.attacks import APGD, PGD
from robustfast.evaluation.auroc import auroc
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.rfd.judge import Judge, judge, judged_clean, lead, no_discriminator
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.evaluation.tables import percent

__all__ = ["PART", "WEIGHTS", "attacks", "report", "strongest"]

WEIGHTS = (0.1, 1.0, 10.0)
"""Of the discriminator's loss beside the cross entropy."""

STEPS = 50
EXPECTED = "collapse: detectors that are differentiable fall to attacks that know of them (arXiv:1705.07263)"


def attacks(both: Judge, eps: float, *, seed: int = 0, norm: str = "linf") -> dict[str, PGD | APGD]:
    """Attacks on a `Judge` by name, each ``attack(x, y, index)``.

    "without" climbs the cross entropy of the classes alone; "weight W" adds W log sigmoid(D), which is as good as at
    its bound once an image passes as clean; "both" climbs min(margin, D), which is positive exactly where an image
    fools the classifier and passes, by APGD, and returns the best point of its path.
    """
    found: dict[str, PGD | APGD] = {"without": pgd(both, eps, norm=norm, seed=seed, loss=_weighted(0.0))}
    for weight in WEIGHTS:
        found[f"weight {weight:g}"] = pgd(
            both, eps, norm=norm, steps=STEPS, seed=seed, loss=_weighted(weight)
        )
    found["both"] = APGD(both, eps=eps, norm=norm, steps=STEPS, seed=seed, loss=_both, returns="max_loss")
    return found


def strongest(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each image the attack that comes furthest: one that fools and passes before one that passes before one that is
    seen, and among those the largest min(margin, score).

    Args:
        found: attack to "margin" [N], positive where the classifier is fooled, and "score" [N], D's logit.

    Returns:
        "margin" and "score" [N] of that attack.
    """
    rows = {key: torch.stack([attack[key] for attack in found.values()]) for key in ("margin", "score")}
    passed = judged_clean(rows["score"])
    rank = passed.double() + (passed & (rows["margin"] > 0)).double()
    # The sigmoid keeps the order and stays below the next rank.
    nearness = torch.minimum(rows["margin"], rows["score"]).double().sigmoid()
    best = (rank + nearness).argmax(0, keepdim=True)
    return {key: values.gather(0, best)[0] for key, values in rows.items()}


def report(clean: Tensor, found: Mapping[str, Tensor]) -> dict[str, float]:
    """What attacked images come to.

    Args:
        clean: D's logits [M] of clean images.
        found: as of one attack in `strongest`.

    Returns:
        "fooled": share that is misclassified; "detected": share judged adversarial; "both": share that is misclassified
        and judged clean; "auroc" of the detector.
    """
    fooled, passed = found["margin"] > 0, judged_clean(found["score"])
    return {
        "fooled": fooled.double().mean().item(),
        "detected": (~passed).double().mean().item(),
        "both": (fooled & passed).double().mean().item(),
        "auroc": auroc(clean, found["score"]),
    }


def _make(context: PartContext) -> PartResult:
    both = judge(context.run)
    eps, seed = radius(context.run), context.request.seed
    made = attacks(both, eps, seed=seed)
    with pieces(context, PART.name) as kept:
        clean = kept.of("clean", _measured(both, None), models=[both])
        found = {
            name: kept.of(name, _measured(both, attack), models=[both], eps=eps, steps=STEPS)
            for name, attack in made.items()
        }
    reports = {name: report(clean["score"], values) for name, values in found.items()}
    worst = report(clean["score"], strongest(found))
    numbers: dict[str, Any] = {
        "eps": eps,
        "attacks": {name: described(attack) for name, attack in made.items()},
        "clean": report(clean["score"], clean),
        "without": reports["without"],
        "weights": {f"{weight:g}": reports[f"weight {weight:g}"] for weight in WEIGHTS},
        "both": reports["both"],
        "strongest": worst,
        "expected": EXPECTED,
    }
    table = Table(
        title=f"{context.path.name}: attacks on classifier and discriminator, eps {eps:.4g} (percent)"
    )
    table.add_column("climbs")
    for heading in ("misclassified", "detected", "and passes", "AUROC"):
        table.add_column(heading, justify="right")
    rows = {
        "nothing (clean)": numbers["clean"],
        "CE alone": reports["without"],
        **{f"CE + {weight:g} log sigmoid(D)": reports[f"weight {weight:g}"] for weight in WEIGHTS},
        "min(margin, D)": reports["both"],
        "strongest of each": worst,
    }
    for label, values in rows.items():
        if values is worst:
            table.add_section()
        table.add_row(label, *(percent(values[key]) for key in ("fooled", "detected", "both", "auroc")))
    table.caption = f"Expected: {EXPECTED}"
    return PartResult(numbers, [table])


def _measured(both: Judge, attack: Callable[..., Tensor] | None) -> Callable[..., dict[str, Tensor]]:
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = x if attack is None else attack(x, y, positions)
        with torch.no_grad():
            logits, score = both.classify(images)
            return {"margin": lead(logits, y), "score": score}

    return work


def _weighted(weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out[:, :-1], y, reduction="none") + weight * F.logsigmoid(out[:, -1])

    return loss


def _both(out: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(lead(out[:, :-1], y), out[:, -1])


PART = Part(
    "adaptive",
    "an attack on classifier and discriminator together (not in the paper; expected to pass)",
    _make,
    unfit=no_discriminator,
)
