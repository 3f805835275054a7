"""PGD along the mean of several gradients per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.gradient import InputGradient, Pass
from robustfast.attacks.pgd import PGD

__all__ = ["Averaged"]


class Averaged(PGD):
    """Expectation over transformation (Athalye et al. 2018, arXiv:1707.07397), for models that draw in each pass.

    Args:
        eot: gradients averaged in each step.
    """

    def __init__(self, model: Any, *args: Any, eot: int = 1, **settings: Any) -> None:
        if not isinstance(eot, int) or eot < 1:
            raise ValueError(f"eot is {eot!r}, expected a whole number from 1")
        super().__init__(model, *args, **settings)
        self._gradient = _Mean(self._gradient, eot)


class _Mean:
    """An `InputGradient` whose gradients are means of `times` passes."""

    def __init__(self, gradient: InputGradient, times: int) -> None:
        self._one = gradient
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._one, name)

    def __call__(self, leaves: Sequence[Tensor], target: Tensor) -> tuple[Tensor, ...]:
        passes = [self._one(leaves, target) for _ in range(self._times)]
        return tuple(sum(grads) / self._times for grads in zip(*passes, strict=True))

    def evaluate(self, x: Tensor, target: Tensor) -> Pass:
        passes = [self._one.evaluate(x, target) for _ in range(self._times)]
        return Pass(*(torch.stack(parts).mean(0) for parts in zip(*map(_fields, passes), strict=True)))


def _fields(one: Pass) -> tuple[Tensor, ...]:
    return one.grad, one.loss, one.logits
