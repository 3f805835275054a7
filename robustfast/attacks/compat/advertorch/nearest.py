"""The attacks that look for the nearest image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast import attacks
from robustfast.attacks.compat.advertorch.base import Attack
from robustfast.attacks.compat.model import predictions

__all__ = ["CarliniWagnerL2Attack", "DDNL2Attack", "DeepfoolLinfAttack"]


class CarliniWagnerL2Attack(Attack):
    """The nearest image of `robustfast.attacks.CarliniWagner`, x where there is none.

    `num_classes` and `loss_fn` are taken and not needed.
    """

    def __init__(
        self, predict: Any, num_classes: int, confidence: float = 0, targeted: bool = False,
        learning_rate: float = 0.01, binary_search_steps: int = 9, max_iterations: int = 10000,
        abort_early: bool = True, initial_const: float = 1e-3, clip_min: float = 0.0, clip_max: float = 1.0,
        loss_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict, None, clip_min, clip_max)
        self.num_classes = num_classes
        self.confidence = confidence
        self.targeted = targeted
        self.learning_rate = learning_rate
        self.binary_search_steps = binary_search_steps
        self.max_iterations = max_iterations
        self.abort_early = abort_early
        self.initial_const = initial_const

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["cw-l2"].attack, held, confidence=self.confidence, step_size=self.learning_rate,
            search_steps=self.binary_search_steps, steps=self.max_iterations, abort_early=self.abort_early,
            c=self.initial_const,
        )  # fmt: skip
        return attack(x, y)


class DDNL2Attack(Attack):
    """`robustfast.attacks.DDN`.

    With `quantize` the result is rounded to `levels` grey levels where the rounded image still fools the model;
    advertorch rounds every step.
    """

    def __init__(
        self, predict: Any, nb_iter: int = 100, gamma: float = 0.05, init_norm: float = 1.0, quantize: bool = True,
        levels: int = 256, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False, loss_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(predict, None, clip_min, clip_max)
        self.nb_iter = nb_iter
        self.gamma = gamma
        self.init_norm = init_norm
        self.quantize = quantize
        self.levels = levels
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["ddn"].attack, held, steps=self.nb_iter, gamma=self.gamma, init_eps=self.init_norm
        )
        found = attack(x, y)
        if not self.quantize:
            return found
        width = self.clip_max - self.clip_min
        steps = ((found - self.clip_min) / width * (self.levels - 1)).round() / (self.levels - 1)
        rounded = (steps * width + self.clip_min).clamp(self.clip_min, self.clip_max)
        fooled = (predictions(held, rounded) == y) == self.targeted
        return torch.where(fooled.reshape(-1, *[1] * (x.dim() - 1)), rounded, found)


class DeepfoolLinfAttack(Attack):
    """`robustfast.attacks.DeepFool` under linf.

    The result is clipped to a perturbation of (1 + overshoot) * eps; advertorch holds the sum of steps to eps in each
    step, which comes to the same where eps is not reached.
    """

    def __init__(
        self, predict: Any, num_classes: int | None = None, nb_iter: int = 50, eps: float = 0.1,
        overshoot: float = 0.02, clip_min: float = 0.0, clip_max: float = 1.0, loss_fn: Any = None,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.num_classes = num_classes
        self.nb_iter = nb_iter
        self.eps = eps
        self.overshoot = overshoot
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        attack = self._run(
            attacks.ATTACKS["deepfool"].attack, held, norm="linf", steps=self.nb_iter, candidates=self.num_classes,
            overshoot=self.overshoot, keep_failed=True,
        )  # fmt: skip
        reach = (1 + self.overshoot) * self.eps
        return (x + (attack(x, y) - x).clamp(-reach, reach)).clamp(self.clip_min, self.clip_max)
