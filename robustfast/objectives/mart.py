"""MART: adversarial training that weighs consistency by how badly an image is classified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import PGD, AttackConfig
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.objectives.objective import Objective, Phase

__all__ = ["MART", "boosted_cross_entropy", "weighted_divergence"]


class MART(Objective):
    """``BCE(p(x_adv), y) + weight * KL(p(x) || p(x_adv)) * (1 - p_y(x))`` on the robust way, batch means.

    Wang et al. 2020 (ICLR, "Improving Adversarial Robustness Requires Revisiting Misclassified Examples"), section 3:
    BCE is their boosted cross entropy, ``-log p_y - log(1 - max over k != y of p_k)``. x_adv climbs the cross entropy
    in eval mode. Every factor sends its gradient on, 1 - p_y(x) too, as in the paper and its code.

    The authors' code adds constants to probabilities: log(1.0001 - p_k + 1e-12) ends at 9.2 and has no slope where
    the network is certain of a wrong class, log(p(x_adv) + 1e-12) ends at -27.6, and 1.0000001 - p_y keeps a weight of
    1e-7. Here all three are taken from log-probabilities, exact and with a gradient wherever the logits are finite.

    Passes with ten attack steps: 26F.

    Raises:
        UserError: a negative `weight`.
    """

    @dataclass(frozen=True)
    class Config:
        weight: float = 5.0
        """Weight of the divergence, the paper's lambda."""

        def __post_init__(self) -> None:
            if not 0 <= self.weight < math.inf:
                raise UserError(f"--objective.weight is {self.weight}, expected a finite number from 0")

    main_ways = "r"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("r"), seed=seed, engine=engine, **attack.keywords())

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        way = self.model.way("r")
        x_adv = self.attack(x, y, index, **self.now())
        logits, logits_adv = way(x), way(x_adv)
        boosted = boosted_cross_entropy(logits_adv, y).mean()
        divergence = weighted_divergence(logits, logits_adv, y).mean()
        loss = boosted + self.config.weight * divergence
        yield Phase("model", loss, {"adversarial": boosted.detach(), "divergence": divergence.detach()})


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """``-log p_y - log(1 - max over k != y of p_k)`` of logits [B, C] and labels int64 [B]: [B]."""
    log_p = F.log_softmax(logits, dim=1)
    label = y[:, None]
    rival = log_p.scatter(1, label, -torch.inf).argmax(dim=1, keepdim=True)
    # What is not the rival adds up to 1 - p_k, also where p_k rounds to 1.
    others = log_p.scatter(1, rival, -torch.inf).logsumexp(dim=1)
    return -log_p.gather(1, label).squeeze(1) - others


def weighted_divergence(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    """``KL(p || p_adv) * (1 - p_y)`` of logits [B, C] and labels int64 [B]: [B]."""
    log_p, log_q = F.log_softmax(logits, dim=1), F.log_softmax(logits_adv, dim=1)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
    return divergence * -torch.expm1(log_p.gather(1, y[:, None]).squeeze(1))
