"""The attack that asks for outputs alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.advertorch.base import Attack, Size
from robustfast.attacks.compat.model import fresh_key, loss_of

__all__ = ["LinfSPSAAttack"]


class LinfSPSAAttack(Attack):
    """`robustfast.attacks.SPSA`: directions of its own for each image."""

    def __init__(
        self, predict: Any, eps: Size, delta: float = 0.01, lr: float = 0.01, nb_iter: int = 1, nb_sample: int = 128,
        max_batch_size: int = 64, targeted: bool = False, loss_fn: Any = None, clip_min: float = 0.0,
        clip_max: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.eps = eps
        self.delta = delta
        self.lr = lr
        self.nb_iter = nb_iter
        self.nb_sample = nb_sample
        self.max_batch_size = max_batch_size
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["spsa"].attack, held, eps=self.eps, delta=self.delta, step_size=self.lr,
            steps=self.nb_iter, samples=self.nb_sample, chunk=max(1, self.max_batch_size // 2),
            loss="margin" if self.loss_fn is None else loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y, epoch=fresh_key())
