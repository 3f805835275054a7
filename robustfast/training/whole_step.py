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
from robustfast.attacks.folding import folding_mode
from robustfast.data import Batch
from robustfast.ops.backend import active_backend
from robustfast.streams import captured, two_streams_wanted
from robustfast.training.engine import Engine, NonFiniteLossError, Step
from robustfast.training.terms import Terms

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

    Whether a replay's losses are finite is read once the next one is launched, so that the device never waits for the
    host. A flag on the device remembers what was not: that next step then moves no parameter and no optimizer, and
    what else it has moved (running statistics, loss scales) is put back before its call raises the error of the step
    before it. `settle` asks for what is still to be read.

    Eagerly run, without a word: the smaller last batch of an epoch, and all steps while the attack's radius still
    grows. They step by the same arithmetic as captured ones; so does the whole run, but for the learning rate, which a
    graph reads as float32.

    Where no step can be captured, `say` is told once why, and all run eagerly. A pixel or label out of range is noticed
    in eager steps only.

    Args:
        engine: runs the steps.
        late: read whether a replay's losses are finite after the next is launched; else each call waits for its own.
        say: told in one line why steps run eagerly after all.

    Attributes:
        engine: the argument.
        captures: graphs captured so far.
    """

    def __init__(self, engine: Engine, *, late: bool = True, say: Callable[[str], Any] = print) -> None:
        self.engine = engine
        self.captures = 0
        self._late = late
        self._say = say
        self._refused = False
        self._stream: torch.cuda.Stream | None = None
        self._kind: Hashable = None
        self._steps = 0  # of this kind in a row
        self._captured: _Captured | None = None
        self._unread: Callable[[], None] | None = None
        if reason := obstacle(engine):
            self._refuse(reason)

    @property
    def pending(self) -> bool:
        """Whether the check of the newest step is still to come."""
        return self._unread is not None

    def step(self, batch: Batch, *, lr: float) -> Terms:
        """As `Engine.step`, with the same results and errors, but that an error may be that of the step before.

        Raises:
            NonFiniteLossError: with `steps_ago` 1 the losses of the call before this one are not finite. Then this
                batch is not trained on, and everything is as that step has left it.
        """
        if self._refused or len(batch.y) != self.engine.config.batch_size or self._growing():
            self.settle()
            return self.engine.step(batch, lr=lr)
        kind = self._kind_of(batch)
        if kind != self._kind:
            self._kind, self._steps = kind, 0
        self._steps += 1
        if self._steps <= _EAGER_STEPS:
            self.settle()
            return self._eagerly(batch, lr, watch=self._steps == _EAGER_STEPS)
        epoch = self.engine.objective.epoch
        if self._captured is None or self._captured.of != (kind, epoch):
            self.settle()
            # The old graph gives its memory back before the new one takes its own.
            self._captured = None
            try:
                self._captured = self._capture(batch, (kind, epoch))
            except CaptureError as error:
                self._refuse(str(error))
                return self.engine.step(batch, lr=lr)
        terms, check = self._captured(batch, lr)
        if not self._late:
            self._judge(check, self._captured, steps_ago=0)
            return terms
        before, self._unread = self._unread, check
        if before is not None:
            self._judge(before, self._captured, steps_ago=1, overtaken=True)
        return terms

    def settle(self) -> None:
        """Wait for the newest step, if its check is still to come.

        Raises:
            NonFiniteLossError: its losses are not finite; `steps_ago` is 1.
        """
        check, self._unread = self._unread, None
        if check is not None:
            assert self._captured is not None
            self._judge(check, self._captured, steps_ago=1)

    def _judge(
        self, check: Callable[[], None], graph: _Captured, *, steps_ago: int, overtaken: bool = False
    ) -> None:
        """Read a step's losses; where they are not finite, undo what a step launched since has done."""
        try:
            check()
        except NonFiniteLossError as failure:
            self._unread = None
            graph.recover(overtaken=overtaken)
            failure.steps_ago = steps_ago
            raise

    def _eagerly(self, batch: Batch, lr: float, *, watch: bool) -> Terms:
        """A step on the stream that will be captured, with what cuBLAS and autograd keep for each stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(batch.x.device)
        rate = torch.full((), lr, device=batch.x.device)
        with on_stream(self._stream), captured(), eager_loops():
            if watch:
                with waits() as found:
                    done = self.engine.compute(batch, rate)
                if found:
                    self._refuse(found[0])
            else:
                done = self.engine.compute(batch, rate)
        done.check()
        return done.terms

    def _capture(self, batch: Batch, of: Hashable) -> _Captured:
        static = Batch(batch.x.clone(), batch.y.clone(), batch.index.clone(), batch.share)
        lr, stuck = torch.zeros((), device=batch.x.device), torch.zeros((), device=batch.x.device)
        moving = self._moving()
        kept = [[tensor.clone() for tensor in group] for group in moving]

        def run() -> Step:
            for mine, theirs in zip(kept, moving, strict=True):
                torch._foreach_copy_(mine, theirs)
            with captured(), eager_loops():
                return self.engine.compute(static, lr, stuck=stuck)

        # Gradients of the eager steps: what replaces them lies in the graph's memory.
        for updater in self.engine.updaters.values():
            updater.clear()
        assert self._stream is not None
        graph, done = record(run, self._stream)
        self.captures += 1
        return _Captured(of, graph, static, lr, done, stuck, moving, kept)

    def _moving(self) -> list[list[Tensor]]:
        """What a step moves also where a loss is not finite, by dtype."""
        objective = self.engine.objective
        modules = {objective.model, *objective.networks().values()}
        tensors = {id(buffer): buffer for module in modules for buffer in module.buffers()}
        for scale in self.engine.scales.values():
            if scale is not None:
                tensors |= {id(value): value for value in scale.state_dict().values()}
        groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors.values():
            groups.setdefault(tensor.dtype, []).append(tensor)
        return list(groups.values())

    def _kind_of(self, batch: Batch) -> Hashable:
        """All that a graph is only good for, but for the epoch."""
        objective, x = self.engine.objective, batch.x
        now = {name: value for name, value in objective.now().items() if name != "epoch"}
        networks = (objective.model, *objective.networks().values())
        where = tuple(addresses(network) for network in networks)
        modes = tuple(part.training for network in networks for part in network.modules())
        shape = x.shape, x.stride(), x.dtype, x.device, batch.share
        switches = two_streams_wanted(), folding_mode(), active_backend()
        return shape, tuple(now.items()), where, modes, switches

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
        stuck: float32 [], not 0 once a replay was not finite.
        moving: tensors that such a replay and those after it move all the same.
        kept: what `moving` was before the newest replay.
    """

    of: Hashable
    graph: torch.cuda.CUDAGraph
    batch: Batch
    lr: Tensor
    done: Step
    stuck: Tensor
    moving: list[list[Tensor]]
    kept: list[list[Tensor]]

    def __call__(self, batch: Batch, lr: float) -> tuple[Terms, Callable[[], None]]:
        """Launch a step; its terms, and what waits for it and raises where it is not finite."""
        for static, value in zip(self.batch[:3], batch[:3], strict=True):
            static.copy_(value)
        self.lr.fill_(lr)
        self.graph.replay()
        report = self.done.report.clone()
        numbers = to_host(report)
        return self.done.terms_in(report), lambda: self.done.judge(numbers())

    def recover(self, *, overtaken: bool) -> None:
        """Be ready for another step after one that was not finite, `overtaken` where one was launched since."""
        if overtaken:
            for theirs, mine in zip(self.moving, self.kept, strict=True):
                torch._foreach_copy_(theirs, mine)
        self.stuck.zero_()


def to_host(values: Tensor) -> Callable[[], list[float]]:
    """Begin to copy `values` to the host; what is returned waits for the copy, not for what is launched after it."""
    if not values.is_cuda:
        return values.tolist
    copied = torch.cuda.Event()
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    copied.record(torch.cuda.current_stream(values.device))

    def wait() -> list[float]:
        copied.synchronize()
        return here.tolist()

    return wait


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
