"""Adversarial training: the paper's one-way baseline of robustness."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import PGD, AttackConfig
from robustfast.models import Network
from robustfast.objectives.objective import Objective, Phase, accuracies

__all__ = ["AT"]


class AT(Objective):
    """Cross entropy of the robust way on attacked images, plus that on natural images (Madry et al. 2018).

    The paper's baseline is "half-half" in the sense of YOPO's loop (AAT, footnote 2): the **sum** of both
    terms, each with coefficient 1, from two separate forward passes, the attacked images first, so that the
    batch norms see two batches.

    Passes with ten attack steps: 26F, without the natural half 23F.
    """

    @dataclass(frozen=True)
    class Config:
        half: bool = True
        """Add the term on natural images."""

    main_ways = "r"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("r"), seed=seed, engine=engine, **attack.keywords())

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 2 * strength.steps + (6 if settings.half else 3)

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        way = self.model.way("r")
        x_adv = self.attack(x, y, index, **self.now())
        logits = {"adversarial": way(x_adv)}
        if self.config.half:
            logits["clean"] = way(x)
        losses = {name: F.cross_entropy(out, y) for name, out in logits.items()}
        terms = {name: loss.detach() for name, loss in losses.items()}
        yield Phase("model", sum(losses.values()), terms, accuracies(logits, y))
