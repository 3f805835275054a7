"""MIM: PGD with momentum over normalised gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.pgd import PGD

__all__ = ["MIM"]


class MIM(PGD):
    """The momentum iterative method.

    Dong et al. 2018 (arXiv:1710.06081), algorithm 1: v <- decay * v + g / |g|_1, then a step along the direction of v,
    from the image itself. torchattacks (MIFGSM), AdverTorch and this class divide by the mean magnitude of an entry
    instead of the sum, which scales every v alike and changes no direction. Foolbox's linf form is another attack: it
    sums signs.

    The peers divide zero by zero where a gradient is zero, and that sample's v stays nan for good. Here such a
    gradient, and one with an entry that is nan or infinite, adds nothing: v decays and the step goes on.

    Args:
        model: as of `PGD`.
        decay: of the momentum, mu in the paper.
        settings: keywords of `PGD`; random_start is off unless given.

    Raises:
        ValueError: as `PGD`; a decay below 0.
    """

    name = "mim"

    def __init__(
        self, model: Callable[[Tensor], Tensor], *args: Any, decay: float = 1.0, **settings: Any
    ) -> None:
        if not 0 <= decay < float("inf"):
            raise ValueError(f"decay is {decay}, expected a factor >= 0")
        self.decay = decay
        super().__init__(model, *args, **{"random_start": False, **settings})

    def _state(self, x: Tensor) -> dict[str, Tensor]:
        return {"velocity": torch.zeros_like(x)}

    def _direction(self, grad: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        grad = grad.to(state["velocity"].dtype)
        size = grad.abs().mean(dim=tuple(range(1, grad.dim())), keepdim=True)
        usable = (size > 0) & size.isfinite()
        normalised = torch.where(usable, grad / size, 0)
        return torch.add(normalised, state["velocity"].mul_(self.decay), out=state["velocity"])
