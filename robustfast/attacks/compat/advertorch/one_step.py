"""One step along the gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.advertorch.base import Attack, Size
from robustfast.attacks.compat.model import loss_of

__all__ = ["FGM", "FGSM", "GradientAttack", "GradientSignAttack"]


class GradientSignAttack(Attack):
    """One step of eps along the sign; FGSM."""

    _step = "linf"

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, clip_min: float = 0.0, clip_max: float = 1.0,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.eps = eps
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(attacks.FGSM, held, eps=self.eps, norm=self._step, loss=loss_of(self.loss_fn))
        return attack(x, y)


class GradientAttack(GradientSignAttack):
    """One step of eps along the gradient over its l2 norm; FGM."""

    _step = "l2"


FGSM = GradientSignAttack
FGM = GradientAttack
