"""TRADES: trade natural accuracy against how far predictions move under attack."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import PGD, AttackConfig, eval_mode
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.objectives.objective import Objective, Phase, accuracies
from robustfast.ops import random_start
from robustfast.seeds import derive

__all__ = ["TRADES", "normal"]


class TRADES(Objective):
    """``CE(h_r(x), y) + beta * KL(p(x) || p(x_adv))`` on the robust way.

    Zhang et al. 2019 (arXiv:1901.08573), equation 5. p is the softmax of h_r; the divergence is the batch mean
    and sends its gradient through both arguments. x_adv climbs that same divergence in eval mode, from x plus a
    little normal noise, against the probabilities of x, computed once. The authors' code runs the natural batch
    through the network twice in train mode; here it runs once, so each batch norm sees one natural and one
    attacked batch and dropout draws one mask for both terms. The loss is NaN where the network gives some x no
    finite probabilities in eval mode, also if those of train mode are finite.

    Passes with ten attack steps: 27F.

    Raises:
        UserError: a negative `beta` or `sigma`.
    """

    @dataclass(frozen=True)
    class Config:
        beta: float = 6.0
        """Weight of the divergence: 6 for CIFAR-10, 1 for MNIST."""
        sigma: float = 0.001
        """Standard deviation of the noise the attack starts from; 0 takes the attack's own random start."""

        def __post_init__(self) -> None:
            for name in ("beta", "sigma"):
                if not 0 <= getattr(self, name) < math.inf:
                    raise UserError(
                        f"--objective.{name} is {getattr(self, name)}, expected a finite number from 0"
                    )

    main_ways = "r"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("r"), loss="kl", seed=seed, engine=engine, **attack.keywords())

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 2 * strength.steps + 1 + 6

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        way = self.model.way("r")
        with eval_mode(way), torch.no_grad():
            probabilities = F.softmax(way(x), dim=1)
            # A softmax is finite or NaN row by row. The attack takes probabilities only; the loss tells of the others.
            finite = probabilities.isfinite()
            probabilities = probabilities.where(finite, 1 / probabilities.shape[1])
        x_adv = self.attack(x, probabilities, index, start=self.start(x, index), **self.now())
        logits, logits_adv = way(x), way(x_adv)
        clean = F.cross_entropy(logits, y)
        divergence = F.kl_div(F.log_softmax(logits_adv, 1), F.softmax(logits, 1), reduction="batchmean")
        loss = (clean + self.config.beta * divergence).where(finite.all(), math.nan)
        terms = {"clean": clean.detach(), "divergence": divergence.detach()}
        yield Phase("model", loss, terms, accuracies({"clean": logits, "adversarial": logits_adv}, y))

    def start(self, x: Tensor, index: Tensor) -> Tensor | None:
        """Where the attack starts; None leaves it to the attack. At x itself the divergence has no slope."""
        if self.config.sigma == 0:
            return None
        seed = derive(self.seed, "trades", self.epoch)
        return x + self.config.sigma * normal(x, seed=seed, index=index)


def normal(x: Tensor, *, seed: int, index: Tensor) -> Tensor:
    """Standard normal draws like `x`, a function of `seed` and each sample's global `index` (Box and Muller
    1958)."""
    zero = torch.zeros_like(x)

    def uniform(name: str) -> Tensor:
        """Multiples of 2**-24 in [0, 1)."""
        draw = {"eps": 0.5, "bounds": (-1.0, 1.0), "seed": derive(seed, name), "index": index}
        return random_start(zero, **draw) + 0.5

    # 1 - u instead of u: its logarithm is always finite.
    radius = torch.sqrt(-2 * torch.log1p(-uniform("radius")))
    return radius * torch.cos(2 * math.pi * uniform("angle"))
