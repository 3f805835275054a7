"""Section IV-E: a clean-trained model for what the discriminator judges clean, the robust way for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from robustfast.attacks import APGD
from robustfast.errors import UserError
from robustfast.evaluation.parts import Part, PartContext, PartResult
from robustfast.evaluation.pieces import pieces
from robustfast.evaluation.rfd.judge import Judge, judge, judged_clean, lead, no_discriminator
from robustfast.evaluation.rfd.threat import described, pgd, radius
from robustfast.evaluation.tables import percent

__all__ = ["PART", "Routed", "routed"]

STEPS = 50


class Routed(nn.Module):
    """The robust way's logits [B, C], the discriminator's, then the other model's [B, C] side by side: [B, 2C+1].

    Args:
        both: robust way and discriminator.
        source: the model for what is judged clean, images -> logits [B, C].
    """

    def __init__(self, both: Judge, source: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.both, self.source = both, source

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.both(x), self.source(x)], dim=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The robust way's logits [B, C], the discriminator's [B], the other model's [B, C]."""
        return _parted(self(x))

    def attacks(self, eps: float, *, seed: int = 0) -> dict[str, APGD]:
        """Attacks on the whole: "as clean" wants an image judged clean and wrong there, "as adversarial" the other."""

        def as_clean(out: Tensor, y: Tensor) -> Tensor:
            _, score, other = _parted(out)
            return torch.minimum(lead(other, y), score)

        def as_adversarial(out: Tensor, y: Tensor) -> Tensor:
            robust, score, _ = _parted(out)
            return torch.minimum(lead(robust, y), -score)

        return {
            name: APGD(self, eps=eps, steps=STEPS, seed=seed, loss=loss, returns="max_loss")
            for name, loss in {"as clean": as_clean, "as adversarial": as_adversarial}.items()
        }


def routed(robust: Tensor, score: Tensor, other: Tensor) -> Tensor:
    """The class that the system names, int64 [B]: the other model's where an image is judged clean.

    Args:
        robust: logits [B, C] of the robust way.
        score: the discriminator's logit [B].
        other: logits [B, C] of the model for clean images.
    """
    return torch.where(judged_clean(score), other.argmax(1), robust.argmax(1))


def _parted(out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classes = out.shape[1] // 2
    return out[:, :classes], out[:, classes], out[:, classes + 1 :]


def _make(context: PartContext) -> PartResult:
    run, source = context.run, context.source()
    system = Routed(judge(run), source).eval()
    _check_classes(context, source)
    eps, seed = radius(run), context.request.seed
    against = {
        "clean": None,
        "adversarial": pgd(run.model.way(run.config.main_way), eps, seed=seed),
        "against_source": pgd(source, eps, seed=seed),
        **system.attacks(eps, seed=seed),
    }
    with pieces(context, PART.name) as kept:
        found = {
            name: kept.of(name, _judged(system, attack), models=[system.both, source], eps=eps, steps=STEPS)
            for name, attack in against.items()
        }
    # Whoever attacks the whole has won where either of the two ways through it is wrong.
    whole = [found.pop(name)["system"] for name in ("as clean", "as adversarial")]
    numbers: dict[str, Any] = {
        name: values["system"].double().mean().item() for name, values in found.items()
    }
    numbers["against_system"] = torch.stack([found["clean"]["system"], *whole]).all(0).double().mean().item()
    for key in ("robust", "source", "judged_clean"):
        numbers[key] = {name: values[key].double().mean().item() for name, values in found.items()}
    numbers["eps"] = eps
    numbers["attacks"] = {name: described(attack) for name, attack in against.items() if attack is not None}
    table = Table(title=f"{context.path.name}: {context.request.source} for what is judged clean (percent)")
    table.add_column("images")
    for heading in ("judged clean", "robust way", "other model", "routed"):
        table.add_column(heading, justify="right")
    rows = {
        "clean": "clean",
        "adversarial": "PGD on robust way",
        "against_source": "PGD on other model",
    }
    for name, heading in rows.items():
        table.add_row(
            heading,
            *(percent(numbers[key][name]) for key in ("judged_clean", "robust", "source")),
            percent(numbers[name]),
        )
    table.add_row("APGD on the whole", "-", "-", "-", percent(numbers["against_system"]))
    return PartResult(numbers, [table])


def _check_classes(context: PartContext, source: Callable[[Tensor], Tensor]) -> None:
    x = next(context.batches())[0][:1]
    with torch.no_grad():
        ours, theirs = context.run.model(x), source(x)
    if ours.shape != theirs.shape:
        raise UserError(
            f"--source {context.request.source}: {theirs.shape[1]} classes, expected the {ours.shape[1]} of "
            f"{context.path}"
        )


def _judged(system: Routed, attack: Callable[..., Tensor] | None) -> Callable[..., dict[str, Tensor]]:
    def work(x: Tensor, y: Tensor, positions: Tensor) -> dict[str, Tensor]:
        images = x if attack is None else attack(x, y, positions)
        with torch.no_grad():
            robust, score, other = system.split(images)
        return {
            "robust": robust.argmax(1) == y,
            "source": other.argmax(1) == y,
            "judged_clean": judged_clean(score),
            "system": routed(robust, score, other) == y,
        }

    return work


PART = Part(
    "routed",
    "a clean-trained model for what is judged clean, the robust way for the rest (IV-E)",
    _make,
    needs=("source",),
    unfit=no_discriminator,
)
