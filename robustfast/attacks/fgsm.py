"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustfast.attacks.pgd import PGD

__all__ = ["FGSM"]


class FGSM(PGD):
    """The fast gradient sign method: one step of length eps from the image itself.

    Goodfellow et al. 2015 (arXiv:1412.6572), section 4: ``clip(x + eps * sign(grad_x loss(model(x), y)))``. Under
    "l2" and "l1" the step goes along the gradient of that norm (the fast gradient method). torchattacks, Foolbox and
    cleverhans agree; some libraries start at random under the same name: that is `FGSMRS`.

    Args:
        model: as of `PGD`.
        eps: radius, and length of the step.
        settings: further keywords of `PGD`, but for steps, step sizes and starts.

    Raises:
        ValueError: as `PGD`.
    """

    name = "fgsm"
    kind = "single-step"

    def __init__(
        self, model: Callable[[Tensor], Tensor], eps: float | Tensor = 8 / 255, **settings: Any
    ) -> None:
        super().__init__(model, eps, steps=1, relative_step=1.0, random_start=False, **settings)
