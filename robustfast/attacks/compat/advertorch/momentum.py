"""Momentum iterative attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.advertorch.base import NORMS, Attack, Size
from robustfast.attacks.compat.model import loss_of

__all__ = ["L2MomentumIterativeAttack", "LinfMomentumIterativeAttack", "MomentumIterativeAttack"]


class MomentumIterativeAttack(Attack):
    """Momentum of gradients over their l1 norm, from the image itself; `ord` inf or 2.

    Under l2 advertorch divides zero by zero for pixels that did not move; here they stay.
    """

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
        ord: float = np.inf,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        if ord not in (np.inf, 2):
            raise NotImplementedError("Only ord = inf and ord = 2 have been implemented")
        self.eps = eps
        self.nb_iter = nb_iter
        self.decay_factor = decay_factor
        self.eps_iter = eps_iter
        self.targeted = targeted
        self.ord = ord

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.MIM, held, eps=self.eps, step_size=self.eps_iter, steps=self.nb_iter, decay=self.decay_factor,
            norm=NORMS[self.ord], loss=loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y)


class LinfMomentumIterativeAttack(MomentumIterativeAttack):
    """Momentum under linf."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, decay_factor, eps_iter, clip_min, clip_max, targeted, np.inf
        )


class L2MomentumIterativeAttack(MomentumIterativeAttack):
    """Momentum under l2."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, decay_factor: float = 1.0,
        eps_iter: Size = 0.01, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, decay_factor, eps_iter, clip_min, clip_max, targeted, 2
        )
