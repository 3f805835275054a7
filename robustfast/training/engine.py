"""The engine: turns the phases an objective yields into optimizer steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustfast.data import Batch
from robustfast.errors import UserError
from robustfast.objectives import Objective, Phase
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig
from robustfast.training.precision import Precision

__all__ = ["Engine", "NonFiniteLossError"]


class NonFiniteLossError(UserError):
    """A phase's loss is nan or infinite; no parameter has moved in that phase."""

    def __init__(self, phase: Phase) -> None:
        terms = ", ".join(f"{name} {float(value):g}" for name, value in phase.terms.items())
        loss = float(phase.loss.detach())
        super().__init__(f"the loss of phase {phase.optimizer!r} is {loss:g} ({terms})")


class Engine:
    """Runs an objective batch by batch.

    For each phase: clear the gradients of that phase's parameters, backward into them alone, step their optimizer. The
    objective's code up to the next phase runs after that step, so it sees the moved weights.

    Args:
        objective: yields the phases.
        config: momentum and weight decay of the optimizers, and the precision.
        device: where the model lies.

    Attributes:
        optimizers: SGD by phase name, over `objective.parameters()`.
    """

    def __init__(self, objective: Objective, config: TrainConfig, device: torch.device) -> None:
        self.objective = objective
        self.precision = Precision(config.precision, device)
        self.parameters = objective.parameters()
        self.optimizers = {
            name: torch.optim.SGD(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=True,
            )
            for name, parameters in self.parameters.items()
        }

    def step(self, batch: Batch, *, lr: float) -> dict[str, Tensor]:
        """Train on one batch.

        Whether a loss is finite is read before its step, one synchronisation a phase: an attack takes milliseconds on
        any device, and weights that a bad batch has moved would be of no use to anyone.

        Args:
            batch: images, labels and indices on the model's device.
            lr: learning rate of this step.

        Returns:
            The terms of all phases and their sum under "loss": detached float32 or float64 scalars.

        Raises:
            NonFiniteLossError: a loss is nan or infinite.
        """
        terms: dict[str, Tensor] = {}
        total: Tensor | float = 0.0
        phases = self.objective.phases(batch.x, batch.y, batch.index)
        while True:
            with self.precision.autocast():
                phase = next(phases, None)
            if phase is None:
                return {"loss": torch.as_tensor(total), **terms}
            if phase.loss.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"phase {phase.optimizer!r}: its loss is {phase.loss.dtype}, expected float32"
                )
            if not bool(torch.isfinite(phase.loss)):
                raise NonFiniteLossError(phase)
            optimizer = lookup("optimizer", self.optimizers, phase.optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            self.precision.backward(phase.loss, self.parameters[phase.optimizer])
            self.precision.step(optimizer)
            terms |= phase.terms
            total = total + phase.loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of the optimizers and the loss scale."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.precision.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.precision.scaler.load_state_dict(state["scaler"])
