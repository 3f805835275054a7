"""Learning rates as a function of the step alone: nothing to store, so a resumed run cannot drift from its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from robustfast.registry import lookup
from robustfast.training.config import TrainConfig

__all__ = ["SCHEDULES", "learning_rate", "multistep", "onecycle"]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the step with this 0-based number over the whole run of `config`."""
    return config.lr * lookup("schedule", SCHEDULES, config.schedule)(config, step, steps_per_epoch)


def multistep(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """A tenth after each milestone epoch, as if stepped at the end of each epoch (AAT, table 5)."""
    return 0.1 ** sum(milestone <= step // steps_per_epoch for milestone in config.milestones)


def onecycle(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Cosine from 1/25 to 1 over the first 30 % of all steps, then down to 1/250,000 (Smith and Topin 2018).

    The shape of `torch.optim.lr_scheduler.OneCycleLR` with its defaults and a constant momentum.
    """
    last = config.epochs * steps_per_epoch - 1
    top = 0.3 * (last + 1) - 1
    if step <= top:
        return _cosine(1 / 25, 1.0, step / top)
    return _cosine(1.0, 1 / 250_000, (step - top) / (last - top))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


SCHEDULES: dict[str, Callable[[TrainConfig, int, int], float]] = {
    "multistep": multistep,
    "onecycle": onecycle,
}
