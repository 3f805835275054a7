"""Foolbox's distances: between batches of images, and the clip to a given one."""

from __future__ import annotations

from typing import Any

import torch

from robustfast.attacks.compat.foolbox.eager import unwrap

__all__ = ["Distance", "LpDistance", "l0", "l1", "l2", "linf"]


class Distance:
    """How far images lie apart."""

    def __call__(self, references: Any, perturbed: Any) -> Any:
        raise NotImplementedError

    def clip_perturbation(self, references: Any, perturbed: Any, epsilon: float) -> Any:
        raise NotImplementedError


class LpDistance(Distance):
    """The lp norm of the difference of each pair of images, p in 0, 1, 2 and inf."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __repr__(self) -> str:
        return f"LpDistance({self.p})"

    def __str__(self) -> str:
        return f"L{self.p} distance"

    def __call__(self, references: Any, perturbed: Any) -> Any:
        """Distances [B]."""
        (x, restore), (other, _) = unwrap(references), unwrap(perturbed)
        return restore(torch.linalg.vector_norm((other - x).flatten(1), self.p, dim=1))

    def clip_perturbation(self, references: Any, perturbed: Any, epsilon: float) -> Any:
        """`perturbed`, shortened along its difference to at most `epsilon`; not clipped to any bounds."""
        (x, restore), (other, _) = unwrap(references), unwrap(perturbed)
        delta = other - x
        if self.p == torch.inf:
            return restore(x + delta.clamp(-epsilon, epsilon))
        length = torch.linalg.vector_norm(delta.flatten(1), self.p, dim=1).clamp(min=1e-12)
        factor = (epsilon / length).clamp(max=1)
        if self.p == 0:
            if bool((factor == 1).all()):
                return perturbed
            raise NotImplementedError("reducing L0 norms not yet supported")
        return restore(x + factor.reshape(-1, *[1] * (x.dim() - 1)) * delta)


l0 = LpDistance(0)
l1 = LpDistance(1)
l2 = LpDistance(2)
linf = LpDistance(torch.inf)
