"""What the attacks of advertorch share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.model import Attacks, as_it_is, predictions

__all__ = ["NORMS", "Attack", "Size"]

Size = float | Tensor
"""Pixels: one number, or a tensor [B]."""
NORMS = {np.inf: "linf", 2: "l2", 1: "l1"}


class Attack:
    """Base class: ``perturb(x, y)``, also called directly."""

    def __init__(self, predict: Any, loss_fn: Any, clip_min: float, clip_max: float) -> None:
        self.predict = predict
        self.loss_fn = loss_fn
        self.clip_min = clip_min
        self.clip_max = clip_max
        self.targeted = False
        self._built = Attacks()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.perturb(*args, **kwargs)

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Adversarial images for x [B, ...]; y are the wanted labels where targeted.

        Raises:
            AssertionError: targeted without y.
        """
        assert y is not None or not self.targeted
        with as_it_is(self.predict) as held:
            labels = predictions(held, x) if y is None else y
            return self._perturb(held, x.detach(), labels)

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError("Sub-classes must implement perturb.")

    def _run(self, kind: Callable[..., attacks.Attack], held: Any, **settings: Any) -> attacks.Attack:
        return self._built.get(
            kind, held, targeted=self.targeted, bounds=(self.clip_min, self.clip_max), **settings
        )
