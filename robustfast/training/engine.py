"""The engine: turns the phases an objective yields into optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from robustfast.training.terms import Terms

__all__ = ["ACCURACY", "CLIPPED", "Engine", "NonFiniteLossError", "Step"]

CLIPPED = "clipped_"
"""What the names of the engine's own terms begin with: for each optimizer, whether its gradient was shortened."""

ACCURACY = "accuracy_"
"""What the names of the terms begin with that tell a phase's accuracies."""


class NonFiniteLossError(UserError):
    """A phase's loss is nan or infinite, here or in another process; no parameter has moved in it or after it.

    Attributes:
        steps_ago: 0 where it is the step that raises, 1 where it is the one before, whose losses were read late.
    """

    steps_ago = 0


@dataclass(frozen=True)
class PhaseRecord:
    """What one phase came to: its optimizers' names, its loss over the batch [], detached, and what it tells of it."""

    optimizers: tuple[str, ...]
    loss: Tensor
    terms: dict[str, Tensor]
    accuracy: dict[str, Tensor]


class Step:
    """What one step came to. Nothing in it was read on the host.

    Args:
        phases: in their order.
        extra: what the engine has to say beside the objective's terms, scalars by name.
        finite: whether the losses of all phases are, in all processes, and no scale is exhausted: bool [].
        exhausted: whether some optimizer's loss scale has found no finite gradient at any value: bool [].

    Attributes:
        finite, exhausted: the arguments.
        report: all of it in one tensor, for one read: float32 or float64 [N].
    """

    def __init__(
        self, phases: Sequence[PhaseRecord], extra: dict[str, Tensor], finite: Tensor, exhausted: Tensor
    ) -> None:
        self.finite, self.exhausted = finite, exhausted
        self._phases = tuple((phase.optimizers, tuple(phase.terms)) for phase in phases)
        losses = [phase.loss for phase in phases]
        terms = {"loss": sum(losses, start=torch.zeros((), device=finite.device))}
        for phase in phases:
            terms |= phase.terms
        for phase in phases:
            extra |= {ACCURACY + name: value for name, value in phase.accuracy.items()}
        terms |= extra
        self._names = tuple(terms)
        # All of one dtype, or CUDA would copy them one by one.
        self.report = torch.stack([finite.float(), exhausted.float(), *losses, *terms.values()])

    @property
    def terms(self) -> Terms:
        """The sum of the losses under "loss", and the terms of all phases: detached scalars."""
        return self.terms_in(self.report)

    def terms_in(self, report: Tensor) -> Terms:
        """`terms` as a copy of the report has them."""
        return Terms(self._names, report[-len(self._names) :])

    def check(self) -> None:
        """Wait for the step.

        Raises:
            NonFiniteLossError: a loss is nan or infinite, or half precision holds no gradient of it.
        """
        self.judge(self.report.tolist())

    def judge(self, report: Sequence[float]) -> None:
        """`check` by the numbers of a report that were read already."""
        finite, exhausted, *more = report
        if finite:
            return
        losses, values = (
            more[: len(self._phases)],
            dict(zip(self._names, more[len(self._phases) :], strict=True)),
        )
        for (optimizers, names), loss in zip(self._phases, losses, strict=True):
            if not math.isfinite(loss):
                terms = ", ".join(f"{name} {values[name]:g}" for name in names)
                raise NonFiniteLossError(f"the loss of phase {_shown(optimizers)} is {loss:g} ({terms})")
        if exhausted:
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

    def step(self, batch: Batch, *, lr: float) -> Terms:
        """Train on one batch, and wait for it.

        Args:
            batch: images, labels and indices on the model's device.
            lr: learning rate of this step.

        Returns:
            The terms of all phases and their sum under "loss": detached scalars, means over this process's images; the
            accuracies of the phases under "accuracy_NAME". With a bound on the gradient's norm also "clipped_NAME": 1
            where it shortened the gradient of optimizer NAME.

        Raises:
            NonFiniteLossError: a loss is nan or infinite; all processes raise it then.
        """
        done = self.compute(batch, lr)
        done.check()
        return done.terms

    pending = False
    """Whether the check of the newest step is still to come."""

    def settle(self) -> None:
        """Raise what a pending check finds; here each step waits for its own."""

    def compute(self, batch: Batch, lr: float | Tensor, *, stuck: Tensor | None = None) -> Step:
        """Train on one batch without reading anything on the host, so that a CUDA graph can hold all of it.

        From the first phase on whose loss is not finite, or its gradient at no scale, no parameter moves; `Step.check`
        tells. Optimizers without a fused kernel of torch's are the exception: the host waits for each of their steps.

        Args:
            batch: as for `step`.
            lr: learning rate of this step; a tensor [] on the model's device to change it between replays.
            stuck: float32 [] on the model's device, not 0 where an earlier step was not finite: then no parameter moves
                here either. Set where this step is not.
        """
        parts = self._parts(batch)
        runs = [(self.objective.phases(part.x, part.y, part.index), weight) for part, weight in parts]
        records: list[PhaseRecord] = []
        extra: dict[str, Tensor] = {}
        bad = torch.zeros((), device=self.device) if stuck is None else stuck.clone()
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
        if stuck is not None:
            stuck.copy_(bad)
        return Step(records, extra, bad.eq(0), exhausted)

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
        loss = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = {}
        accuracy: dict[str, Tensor] = {}
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
            for sums, parts in ((terms, phase.terms), (accuracy, phase.accuracy)):
                for name, value in parts.items():
                    sums[name] = sums[name] + value * weight if number else value * weight
        return None if names is None else PhaseRecord(names, loss, terms, accuracy)

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
