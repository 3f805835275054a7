"""A whole training step as one CUDA graph: attack, training passes and optimizer, launched at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.cuda_graph import CaptureError, addresses, eager_loops, on_stream, record
from robustfast.data import Batch
from robustfast.training.engine import Engine, Step

__all__ = ["WholeStep", "obstacle"]

# Steps of one kind that run eagerly before the first capture: in the first one cuDNN picks its algorithms and
# torch.compile compiles, which may wait for the device; the second one is watched for anything else that does.
_EAGER_STEPS = 2


class WholeStep:
    """`Engine.step` from a CUDA graph, where the step is the same from batch to batch; else as ever.

    The first two steps of a kind are real steps that run eagerly. The third is captured, which computes nothing, and
    replayed; so is each one after it. A graph freezes what Python decides, such as the key of the random starts, which
    changes with the epoch, or eps: a step of another epoch, strength, shape or place of the weights is another kind. Of
    the images, the labels, the learning rate and dropout's seed each replay takes those of its own step.

    Eagerly run, without a word: the smaller last batch of an epoch, and all steps while the attack's radius still
    grows. They step by the same arithmetic as captured ones; so does the whole run, but for the learning rate, which a
    graph reads as float32.

    Where no step can be captured, `say` is told once why, and all run eagerly. A pixel or label out of range is noticed
    in eager steps only.

    Args:
        engine: runs the steps.
        say: told in one line why steps run eagerly after all.

    Attributes:
        engine: the argument.
        captures: graphs captured so far.
    """

    def __init__(self, engine: Engine, *, say: Callable[[str], Any] = print) -> None:
        self.engine = engine
        self.captures = 0
        self._say = say
        self._refused = False
        self._stream: torch.cuda.Stream | None = None
        self._kind: Hashable = None
        self._steps = 0  # of this kind in a row
        self._captured: _Captured | None = None
        if reason := obstacle(engine):
            self._refuse(reason)

    def step(self, batch: Batch, *, lr: float) -> dict[str, Tensor]:
        """As `Engine.step`, with the same results and errors."""
        if self._refused or len(batch.y) != self.engine.config.batch_size or self._growing():
            return self.engine.step(batch, lr=lr)
        kind = self._kind_of(batch)
        if kind != self._kind:
            self._kind, self._steps = kind, 0
        self._steps += 1
        if self._steps <= _EAGER_STEPS:
            return self._eagerly(batch, lr, watch=self._steps == _EAGER_STEPS)
        epoch = self.engine.objective.epoch
        if self._captured is None or self._captured.of != (kind, epoch):
            # The old graph gives its memory back before the new one takes its own.
            self._captured = None
            try:
                self._captured = self._capture(batch, (kind, epoch))
            except CaptureError as error:
                self._refuse(str(error))
                return self.engine.step(batch, lr=lr)
        return self._captured(batch, lr)

    def _eagerly(self, batch: Batch, lr: float, *, watch: bool) -> dict[str, Tensor]:
        """A step on the stream that will be captured, with what cuBLAS and autograd keep for each stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(batch.x.device)
        rate = torch.full((), lr, device=batch.x.device)
        with on_stream(self._stream), eager_loops():
            if watch:
                with waits() as found:
                    done = self.engine.compute(batch, rate)
                if found:
                    self._refuse(found[0])
            else:
                done = self.engine.compute(batch, rate)
            terms = done.terms
        done.check()
        return terms

    def _capture(self, batch: Batch, of: Hashable) -> _Captured:
        static = Batch(batch.x.clone(), batch.y.clone(), batch.index.clone(), batch.share)
        lr = torch.zeros((), device=batch.x.device)

        def run() -> tuple[Step, dict[str, Tensor]]:
            with eager_loops():
                done = self.engine.compute(static, lr)
            return done, done.terms

        # Gradients of the eager steps: what replaces them lies in the graph's memory.
        for updater in self.engine.updaters.values():
            updater.clear()
        assert self._stream is not None
        graph, (done, terms) = record(run, self._stream)
        self.captures += 1
        return _Captured(of, graph, static, lr, done, terms)

    def _kind_of(self, batch: Batch) -> Hashable:
        """All that a graph is only good for, but for the epoch."""
        objective, x = self.engine.objective, batch.x
        now = {name: value for name, value in objective.now().items() if name != "epoch"}
        networks = (objective.model, *objective.networks().values())
        where = tuple(addresses(network) for network in networks)
        modes = tuple(part.training for network in networks for part in network.modules())
        return x.shape, x.stride(), x.dtype, x.device, batch.share, tuple(now.items()), where, modes

    def _growing(self) -> bool:
        objective = self.engine.objective
        return objective.strength.at(objective.progress) != objective.strength.at(1.0)

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self._captured = None
        self._say(f"whole step runs eagerly, not as a CUDA graph: {reason}")


def obstacle(engine: Engine) -> str | None:
    """What is known before the first step to keep its steps out of a graph; None where nothing is."""
    if engine.device.type != "cuda":
        return f"CUDA graphs need a GPU, this runs on {engine.device}"
    if engine.world.size > 1:
        return f"{engine.world.size} processes exchange gradients in the midst of it"
    return None


@dataclass(frozen=True)
class _Captured:
    """A graph, its inputs, and what each replay writes anew.

    Attributes:
        of: kind and epoch of the steps it is good for.
    """

    of: Hashable
    graph: torch.cuda.CUDAGraph
    batch: Batch
    lr: Tensor
    done: Step
    terms: dict[str, Tensor]

    def __call__(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        for static, value in zip(self.batch[:3], batch[:3], strict=True):
            static.copy_(value)
        self.lr.fill_(lr)
        self.graph.replay()
        # One read, after the whole step. Where a loss was not finite the optimizer's kernels have moved nothing.
        self.done.check()
        return {name: value.clone() for name, value in self.terms.items()}


@contextmanager
def waits() -> Iterator[list[str]]:
    """Gathers where the host waited for the device inside the block, once the block has ended."""
    found: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            found.append(f"{warning.filename}:{warning.lineno} waits for the device")
        elif "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
