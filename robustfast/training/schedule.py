"""Learning rates as a function of the step alone: nothing to store, so a resumed run cannot drift from its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from robustfast.registry import lookup
from robustfast.training.config import TrainConfig

__all__ = ["SCHEDULES", "constant", "cosine", "learning_rate", "multistep", "onecycle", "warmup"]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of the step with this 0-based number over the whole run of `config`."""
    schedule = lookup("schedule", SCHEDULES, config.schedule)
    return config.lr * warmup(config, step, steps_per_epoch) * schedule(config, step, steps_per_epoch)


def warmup(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """k/W for step number k, from 1, of the first W = ``config.warmup`` epochs, then 1 (Goyal et al. 2017).

    No step has rate 0, which would move nothing. W need not be whole.
    """
    steps = config.warmup * steps_per_epoch
    return 1.0 if step + 1 >= steps else (step + 1) / steps


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


def cosine(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Half a cosine from 1 to ``config.final_lr`` over all steps (Loshchilov and Hutter 2017, equation 5, without
    restarts)."""
    return _cosine(1.0, config.final_lr, step / (config.epochs * steps_per_epoch))


def constant(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """1 throughout."""
    return 1.0


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))


SCHEDULES: dict[str, Callable[[TrainConfig, int, int], float]] = {
    "multistep": multistep,
    "onecycle": onecycle,
    "cosine": cosine,
    "constant": constant,
}
