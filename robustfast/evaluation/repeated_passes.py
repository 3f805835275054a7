"""Models that draw: the mean of several passes, and draws that can be had again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robustfast.attacks.modes import module_of

__all__ = ["MeanOfPasses", "own_draws"]


class MeanOfPasses:
    """The mean logits of several passes of a random model."""

    def __init__(self, model: Callable[[Tensor], Tensor], passes: int) -> None:
        # Under this name, so that the module behind it is found and put into eval mode.
        self.model = module_of(model)
        self._called, self._passes = model, passes

    def __call__(self, x: Tensor) -> Tensor:
        total = self._called(x)
        for _ in range(self._passes - 1):
            total = total + self._called(x)
        return total / self._passes


@contextmanager
def own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """A randomised model's draws: the same for a batch whatever came before, and torch's generators left as found."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
