"""The engine: turns the phases an objective yields into optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robustfast.data import Batch
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.objectives import Objective, Phase
from robustfast.registry import lookup
from robustfast.training.config import TrainConfig
from robustfast.training.optimizers import Updater, overridden
from robustfast.training.precision import Precision

__all__ = ["CLIPPED", "Engine", "NonFiniteLossError", "Step"]

CLIPPED = "clipped_"
"""What the names of the engine's own terms begin with: for each optimizer, whether its gradient was shortened."""


class NonFiniteLossError(UserError):
    """A phase's loss is nan or infinite, here or in another process; no parameter has moved in it or after it."""


@dataclass(frozen=True)
class PhaseRecord:
    """What one phase came to: its optimizers' names, its loss over the batch [], detached, and the loss's terms."""

    optimizers: tuple[str, ...]
    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What one step came to. Nothing in it was read on the host.

    Attributes:
        phases: in their order.
        extra: what the engine has to say beside the objective's terms, scalars by name.
        finite: whether the losses of all phases are, in all processes, and no scale is exhausted: bool [].
        exhausted: whether some optimizer's loss scale has found no finite gradient at any value: bool [].
    """

    phases: tuple[PhaseRecord, ...]
    extra: dict[str, Tensor]
    finite: Tensor
    exhausted: Tensor

    @property
    def terms(self) -> dict[str, Tensor]:
        """The sum of the losses under "loss", and the terms of all phases: detached float32 or float64 scalars."""
        total = sum((phase.loss for phase in self.phases), start=torch.zeros((), device=self.finite.device))
        terms = {"loss": total}
        for phase in self.phases:
            terms |= phase.terms
        return terms | self.extra

    def check(self) -> None:
        """Wait for the step.

        Raises:
            NonFiniteLossError: a loss is nan or infinite, or half precision holds no gradient of it.
        """
        if bool(self.finite):
            return
        for phase in self.phases:
            if not bool(torch.isfinite(phase.loss)):
                terms = ", ".join(f"{name} {float(value):g}" for name, value in phase.terms.items())
                raise NonFiniteLossError(
                    f"the loss of phase {_shown(phase.optimizers)} is {float(phase.loss):g} ({terms})"
                )
        if bool(self.exhausted):
            raise NonFiniteLossError(
                "the loss is finite, its gradient in fp16 is not at any scale: use --precision bf16 or fp32"
            )
        raise NonFiniteLossError("the loss is not finite in another process")


class Engine:
    """Runs an objective batch by batch.

    For each phase: clear the gradients of that phase's parameters, backward into them alone, add them up over the
    processes, clip, step their optimizer. The objective's code up to the next phase runs after that step, so it sees
    the moved weights. Where a phase names several optimizers, one backward serves all, at the loss scale of the first;
    each clips and steps for itself.

    With ``config.accumulate`` the batch is cut into so many parts, as equal as can be (fewer where it has fewer
    images). Each runs the objective's phases by itself, all of them one phase before any the next, and their gradients
    add up before the step: but for batch norm, whose statistics are then those of a part, and for dropout, it is the
    step of the whole batch.

    Args:
        objective: yields the phases.
        config: the optimizers, the precision, clipping, parts.
        device: where the model lies.
        world: the processes that train together. All hold the same weights, and keep them the same.

    Attributes:
        precision: the arithmetic.
        updaters: by phase name, over `objective.parameters()`.

    Raises:
        UserError: an optimizer or precision that cannot run here.
        ValueError: the objective has settings for an optimizer without parameters.
    """

    def __init__(
        self, objective: Objective, config: TrainConfig, device: torch.device, world: World | None = None
    ) -> None:
        self.objective, self.config, self.device = objective, config, device
        self.world = world or World()
        self.precision = Precision(config.precision, device)
        parameters, overrides = objective.parameters(), objective.optimizers()
        if unknown := sorted(set(overrides) - set(parameters)):
            raise ValueError(
                f"optimizers() has settings for {', '.join(unknown)}, parameters() names {', '.join(parameters)}"
            )
        self.updaters = {
            name: Updater(
                group,
                overridden(config, overrides.get(name, {})),
                factor=overrides.get(name, {}).get("lr", 1.0),
            )
            for name, group in parameters.items()
        }
        self.scales = {name: self.precision.loss_scale() for name in parameters}

    def step(self, batch: Batch, *, lr: float) -> dict[str, Tensor]:
        """Train on one batch, and wait for it.

        Args:
            batch: images, labels and indices on the model's device.
            lr: learning rate of this step.

        Returns:
            The terms of all phases and their sum under "loss": detached scalars, means over this process's images. With
            a bound on the gradient's norm also "clipped_NAME": 1 where it shortened the gradient of optimizer NAME.

        Raises:
            NonFiniteLossError: a loss is nan or infinite; all processes raise it then.
        """
        done = self.compute(batch, lr)
        done.check()
        return done.terms

    def compute(self, batch: Batch, lr: float | Tensor) -> Step:
        """Train on one batch without reading anything on the host, so that a CUDA graph can hold all of it.

        From the first phase on whose loss is not finite, or its gradient at no scale, no parameter moves; `Step.check`
        tells. Optimizers without a fused kernel of torch's are the exception: the host waits for each of their steps.

        Args:
            batch: as for `step`.
            lr: learning rate of this step; a tensor [] on the model's device to change it between replays.
        """
        parts = self._parts(batch)
        runs = [(self.objective.phases(part.x, part.y, part.index), weight) for part, weight in parts]
        records: list[PhaseRecord] = []
        extra: dict[str, Tensor] = {}
        bad = torch.zeros((), device=self.device)
        exhausted = torch.zeros((), dtype=torch.bool, device=self.device)
        while (record := self._backward(runs, batch.share)) is not None:
            records.append(record)
            updaters = {name: self.updaters[name] for name in record.optimizers}
            scale = self.scales[record.optimizers[0]]
            bad = torch.maximum(bad, self.world.sum((~torch.isfinite(record.loss)).float()))
            self.world.sum_gradients([p for updater in updaters.values() for p in updater.parameters])
            skip = bad
            if scale is not None:
                overflow = scale.unscale([g for updater in updaters.values() for g in updater.gradients])
                scale.update(overflow)
                exhausted = exhausted | scale.exhausted
                bad = torch.maximum(bad, exhausted.float())
                skip = torch.maximum(bad, overflow)
            for name, updater in updaters.items():
                clipped = updater.clip()
                if clipped is not None:
                    extra[CLIPPED + name] = clipped
                # The kernels compare with 1.
                updater.step(lr, skip.ne(0).float())
        if self.config.batch_norm == "local":
            for module in (self.objective.model, *self.objective.networks().values()):
                self.world.same_buffers(module)
        return Step(tuple(records), extra, bad.eq(0), exhausted)

    def _parts(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The parts of a batch that are computed one after the other, and the share of each in its images."""
        images = len(batch.y)
        # As many in each process, since synchronised batch norms wait for each other: as the smallest batch allows.
        count = min(self.config.accumulate, round(images / batch.share) // self.world.size)
        cuts = [part * images // count for part in range(count + 1)]
        return [
            (batch._replace(x=batch.x[a:b], y=batch.y[a:b], index=batch.index[a:b]), (b - a) / images)
            for a, b in pairwise(cuts)
        ]

    def _backward(self, runs: list[tuple[Iterator[Phase], float]], share: float) -> PhaseRecord | None:
        """Bring each part to its next phase and backward from there; None where they have no more."""
        names: tuple[str, ...] | None = None
        loss, terms = torch.zeros((), device=self.device), {}
        for number, (run, weight) in enumerate(runs):
            with self.precision.autocast():
                phase = next(run, None)
            here = phase.optimizers if phase else None
            if number and here != names:
                raise UserError(
                    f"parts of one batch differ in their phases: {_shown(names)} in the first, {_shown(here)} in "
                    f"another; train this objective with --accumulate 1"
                )
            if phase is None:
                continue
            if phase.loss.dtype not in (torch.float32, torch.float64):
                raise TypeError(
                    f"phase {_shown(phase.optimizers)}: its loss is {phase.loss.dtype}, expected float32"
                )
            names = phase.optimizers
            updaters = [lookup("optimizer", self.updaters, name) for name in names]
            if not number:
                for updater in updaters:
                    updater.clear()
            scale = self.scales[names[0]]
            weighted = phase.loss * (share * weight)
            inputs = [parameter for updater in updaters for parameter in updater.parameters]
            (weighted if scale is None else weighted * scale.value).backward(inputs=inputs)
            loss = loss + phase.loss.detach() * weight
            for term, value in phase.terms.items():
                terms[term] = terms[term] + value * weight if number else value * weight
        return None if names is None else PhaseRecord(names, loss, terms)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs of the optimizers, the loss scales and the objective's own networks."""
        networks = self.objective.networks()
        return {
            "optimizers": {name: updater.state_dict() for name, updater in self.updaters.items()},
            "scales": {name: scale.state_dict() for name, scale in self.scales.items() if scale is not None},
            "networks": {name: network.state_dict() for name, network in networks.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, updater in self.updaters.items():
            updater.load_state_dict(state["optimizers"][name])
        for name, scale in self.scales.items():
            if scale is not None:
                scale.load_state_dict(state["scales"][name])
        for name, network in self.objective.networks().items():
            network.load_state_dict(state["networks"][name])


def _shown(optimizers: tuple[str, ...] | None) -> str:
    """A phase as messages name it."""
    return repr(None if optimizers is None else " + ".join(optimizers))
