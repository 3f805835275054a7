"""Averages of the weights over the steps of a run, which often generalise better than the last weights do."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.training.config import TrainConfig

__all__ = ["Average"]


class Average:
    """A second model that holds the average of the first one's weights and buffers.

    "ema" is w <- d w + (1 - d) new with the decay d = min(``ema_decay``, (1 + k) / (10 + k)) at the step with 0-based
    number k: with the full decay from the start, a short run would end near its initial weights. "swa" is the plain
    mean over the steps from ``swa_start`` of all on (Izmailov et al. 2018, here of every step and not of one an epoch);
    before that it is the weights themselves.

    Running means and variances of batch norms are averaged like the weights, which costs no pass over the data and no
    state; integer buffers, their counters, are copied.

    Args:
        model: the model that is trained; `Average` starts from its weights.
        config: which average.
        total_steps: steps of the whole run.

    Attributes:
        model: the averaged one: evaluate this. Same modules, layout and modes as the other has now, and no gradients.

    Raises:
        ValueError: ``config.average`` is "none".
    """

    def __init__(self, model: nn.Module, config: TrainConfig, total_steps: int) -> None:
        if config.average == "none":
            raise ValueError('average is "none": there is nothing to keep')
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._config = config
        self._first = math.ceil(config.swa_start * total_steps)
        floats: list[tuple[Tensor, Tensor]] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        for mine, source in zip(_tensors(self.model), _tensors(model), strict=True):
            (floats if mine.is_floating_point() else self._copied).append((mine, source))
        self._averaged, self._sources = [mine for mine, _ in floats], [source for _, source in floats]
        self._before: list[list[Tensor]] = []

    def update(self, step: int) -> None:
        """Take the trained model's weights in, after the step with this 0-based number over the whole run."""
        weight = self._weight(step)
        with torch.no_grad():
            if weight == 1.0:
                torch._foreach_copy_(self._averaged, self._sources)
            else:
                torch._foreach_lerp_(self._averaged, self._sources, weight)
            for mine, source in self._copied:
                mine.copy_(source)

    def keep(self) -> None:
        """Remember the average as it is, for `put_back`; takes the memory of one more."""
        self._before = self._before or [[torch.empty_like(t) for t in group] for group in self._groups()]
        for now, before in zip(self._groups(), self._before, strict=True):
            torch._foreach_copy_(before, now)

    def put_back(self) -> None:
        """Take back the updates since the newest `keep`."""
        for now, before in zip(self._groups(), self._before, strict=True):
            torch._foreach_copy_(now, before)

    def _groups(self) -> list[list[Tensor]]:
        """All tensors of the average, those of one kind together; no empty group, which torch refuses."""
        return [group for group in (self._averaged, [mine for mine, _ in self._copied]) if group]

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's weights and buffers, all that a resumed run needs."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.model.load_state_dict(state)

    def _weight(self, step: int) -> float:
        """Of the new weights; a function of the step alone, so a resumed run cannot drift from it."""
        if self._config.average == "ema":
            return 1 - min(self._config.ema_decay, (1 + step) / (10 + step))
        return 1 / max(1, step - self._first + 1)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
