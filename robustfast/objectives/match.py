"""Representation matching: standard training that also keeps an image's features where its attacked ones are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import APGD, AttackConfig
from robustfast.errors import UserError
from robustfast.models import Network, OneWay
from robustfast.objectives.objective import Objective, Phase

__all__ = ["Match"]


class Match(Objective):
    """``CE(h(x), y) + weight * |F(x) - F(x_adv)|_2`` of logits h and features F, batch means.

    The control of AFD, Bashivan et al. 2021 (arXiv:2006.04621), section 4.6: what they play a discriminator for, asked
    for directly. F is what the classifier sees, of unit norm where the network normalises it. x_adv is AFD's: APGD on
    the cross entropy in eval mode, without images that it could not fool ("success_only"). The distance sends its
    gradient into both arguments; at F(x) = F(x_adv), where it has none, 0. The paper gives no weight.

    APGD sets its own steps: of the attack's settings it takes eps, norm, steps and ramp.

    Passes with ten attack steps: 29F, with "max_loss" 28F.

    Raises:
        UserError: a negative `weight`, or unknown `returns`.
    """

    @dataclass(frozen=True)
    class Config:
        weight: float = 1.0
        """Weight of the distance."""
        returns: Literal["success_only", "max_loss"] = "success_only"
        """success_only leaves images as they are that the attack did not turn from right to wrong; max_loss takes each
        one's image of the highest loss."""

        def __post_init__(self) -> None:
            if not 0 <= self.weight < math.inf:
                raise UserError(f"--objective.weight is {self.weight}, expected a finite number from 0")
            if self.returns not in ("success_only", "max_loss"):
                raise UserError(
                    f"--objective.returns is {self.returns!r}, expected 'success_only' or 'max_loss'"
                )

    trains = OneWay
    main_ways = "r"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = APGD(
            model.way("r"),
            eps=attack.eps,
            norm=attack.norm,
            steps=attack.steps,
            returns=config.returns,
            seed=seed,
            engine=engine,
        )

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        look = 1 if settings.returns == "success_only" else 0
        return 2 * strength.steps + 8 + look

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        self.attack.eps = self.now()["eps"]
        x_adv = self.attack(x, y, index, epoch=self.epoch)
        features, features_adv = self.model.features(x), self.model.features(x_adv)
        clean = F.cross_entropy(self.model.classifier(features), y)
        # In float32 where the network runs in half precision.
        difference = features.to(clean.dtype) - features_adv.to(clean.dtype)
        distance = torch.linalg.vector_norm(difference, dim=1).mean()
        loss = clean + self.config.weight * distance
        yield Phase("model", loss, {"clean": clean.detach(), "distance": distance.detach()})
