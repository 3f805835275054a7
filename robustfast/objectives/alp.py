"""ALP: adversarial training with clean and attacked logits drawn together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import PGD, AttackConfig
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.objectives.objective import Objective, Phase

__all__ = ["ALP"]


class ALP(Objective):
    """``clean * CE(h(x), y) + (1 - clean) * CE(h(x_adv), y) + weight * mean (h(x) - h(x_adv))^2`` on the robust way.

    Adversarial logit pairing, Kannan et al. 2018 (arXiv:1803.06373), with the l2 loss of their experiments: the squared
    distance of the logits h, as a mean over images and classes. The cross entropy is that of mixed-minibatch PGD, half
    clean and half attacked, here with every image in both halves; `clean` 0 leaves that of Madry et al. The pairing
    sends its gradient into both arguments. x_adv climbs the cross entropy in eval mode; on ImageNet the paper's attack
    aims at random classes, here it aims at none.

    Passes with ten attack steps: 26F.

    Raises:
        UserError: a negative `weight`, or `clean` outside [0, 1].
    """

    @dataclass(frozen=True)
    class Config:
        weight: float = 0.5
        """Weight of the pairing; 0.5 is the paper's for ImageNet."""
        clean: float = 0.5
        """Share of the cross entropy that clean images have."""

        def __post_init__(self) -> None:
            if not 0 <= self.weight < math.inf:
                raise UserError(f"--objective.weight is {self.weight}, expected a finite number from 0")
            if not 0 <= self.clean <= 1:
                raise UserError(f"--objective.clean is {self.clean}, expected a share in [0, 1]")

    main_ways = "r"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("r"), seed=seed, engine=engine, **attack.keywords())

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        way, config = self.model.way("r"), self.config
        x_adv = self.attack(x, y, index, **self.now())
        logits, logits_adv = way(x), way(x_adv)
        clean, adversarial = F.cross_entropy(logits, y), F.cross_entropy(logits_adv, y)
        # In float32 where the network runs in half precision, whose squares overflow from 256 on.
        pairing = F.mse_loss(logits.to(clean.dtype), logits_adv.to(clean.dtype))
        loss = config.clean * clean + (1 - config.clean) * adversarial + config.weight * pairing
        terms = {"clean": clean, "adversarial": adversarial, "pairing": pairing}
        yield Phase("model", loss, {name: term.detach() for name, term in terms.items()})
