"""The training loop: step by step, epoch by epoch, until the end or a reason to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from torch import Tensor

from robustfast.data import Batch, Dataset
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.seeds import derive
from robustfast.signals import Stopped, StopRequest
from robustfast.together import together
from robustfast.training import checkpoint
from robustfast.training.board import Board
from robustfast.training.engine import ACCURACY, CLIPPED, NonFiniteLossError
from robustfast.training.held_out import HeldOutCheck, HeldOutResult
from robustfast.training.metrics import Meter
from robustfast.training.pictures import Pictures
from robustfast.training.progress import Progress, epoch_line
from robustfast.training.run_folder import RunFolder
from robustfast.training.run_state import RunState
from robustfast.training.schedule import learning_rate

__all__ = ["Trainer"]


@dataclass(frozen=True)
class _Before:
    """What a step whose losses are not read yet has counted: its images' indices, and the meter as it was before."""

    index: Tensor
    meter: Meter


class Trainer(RunState):
    """What moves a run from step to step, and writes down how it goes.

    Args:
        folder, dataset, device, world: as for `RunState`.
        held_out: the images that the checks use; None checks nothing.
        positions: where in the training split each image of `dataset` lies, int64; None: `dataset` is all of it.

    Raises:
        UserError: a model, objective or loader that does not fit the images or cannot run here.
    """

    def __init__(
        self,
        folder: RunFolder,
        dataset: Dataset,
        device: torch.device,
        world: World | None = None,
        *,
        held_out: Dataset | None = None,
        positions: Tensor | None = None,
    ) -> None:
        super().__init__(folder, dataset, device, world)
        self.positions = positions
        self._before: _Before | None = None
        self.check, self.pictures = None, None
        if held_out is not None:
            seen = self.judged, self.objective.main_ways, held_out
            # Images that were set aside for the checks are all used; of a test split, as many as asked for.
            number = self.config.hold_out or self.config.validate_images
            checked = replace(self.config, validate_images=number)
            self.check = HeldOutCheck(*seen, checked, self.engine.precision, self.world)
            if self._board_folder() is not None:
                self.pictures = Pictures(*seen, self.config, self.engine.precision)

    def close(self) -> None:
        """Stop what the loaders have running."""
        super().close()
        if self.check is not None and self.check.feed is not None:
            self.check.feed.close()

    def run(self) -> None:
        """Train until the last epoch is done or early stopping is due.

        Raises:
            Stopped: SIGTERM or SIGINT asked for it; the newest checkpoint holds every finished step.
            UserError: a loss or weights that are not finite, or a disk that is full.
        """
        config, path, images = self.config, self.folder.path, self.feed.images
        if self.finished:
            self.say(f"{path} is finished: {self._reached()}{self._early_end()}")
            return
        done = self.epoch * images + min(self.step * config.batch_size, images)
        with (
            Progress(config.epochs * images, done=done, console=self._console()) as progress,
            StopRequest() as stop,
        ):
            board = together(self.world, lambda: Board(self._board_folder(), self.epoch))
            if self.config.tensorboard and find_spec("tensorboard") is None:
                progress.line("no TensorBoard events: tensorboard is not installed (pip install tensorboard)")
            where = f"{self.device}" + (f", {self.world.size} processes" if self.world.size > 1 else "")
            verb = (
                f"continuing {path} after {self._reached()}"
                if done
                else f"training {config.preset} into {path}"
            )
            progress.line(
                f"{verb}: {config.epochs} epochs of {images} images, {len(self.feed)} steps each, on {where}"
            )
            while not self.finished:
                progress.epoch(self.epoch + 1, config.epochs)
                self._train_epoch(progress, stop)
                self._end_epoch(progress, board)
            self._agree(stop)

    def _train_epoch(self, progress: Progress, stop: StopRequest) -> None:
        steps = len(self.feed)
        self.model.train()
        began = time.perf_counter() - self.meter.seconds
        batches = self.feed.batches(self.epoch, start=self.step)
        while self.step < steps:
            batch = self._next(batches, stop)
            number = self.epoch * steps + self.step
            self.objective.begin(self.epoch, number / (self.config.epochs * steps))
            # Dropout is the one thing in training that draws from torch's global generators. Seeded for each step and
            # process, it has no state that a resumed run would have to hold, nor another number of processes share out.
            torch.manual_seed(derive(self.config.seed, "dropout", self.epoch, self.step, self.world.rank))
            try:
                terms = self.stepper.step(batch, lr=learning_rate(self.config, number, steps))
            except NonFiniteLossError as failure:
                self._fail(failure, batch.index)
            # A step whose losses are read later is counted at once: what that changes must be there to be put back.
            pending = self.stepper.pending
            self._before = _Before(batch.index, self.meter.copy()) if pending else None
            if self.average is not None:
                if pending:
                    self.average.keep()
                self.average.update(number)
            self.meter.add(terms, len(batch.y))
            self.step += 1
            self.meter.seconds = time.perf_counter() - began
            progress.advance(round(len(batch.y) / batch.share))
            due = self.config.checkpoint_steps and (number + 1) % self.config.checkpoint_steps == 0
            if due and self.step < steps:
                self._save()
        self._settle()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.meter.seconds = time.perf_counter() - began
        self._agree(stop)

    def _next(self, batches: Iterator[Batch], stop: StopRequest) -> Batch:
        """The next batch, if no process was asked to stop and all of them got theirs."""
        if self.world.size == 1:
            self._agree(stop)
            return next(batches)
        batch, failure = None, None
        try:
            batch = next(batches)
        except UserError as error:
            failure = error
        self._agree(stop, failure)
        assert batch is not None
        return batch

    def _agree(self, stop: StopRequest, failure: UserError | None = None) -> None:
        """Stop in all processes where one must: one message of two numbers between two steps."""
        number = stop.number
        if self.world.size > 1:
            # On the CPU, so that a GPU is not waited for.
            failures, numbers = self.world.sum(torch.tensor([failure is not None, number])).tolist()
            if failures:
                together(self.world, lambda: _raise(failure))
            # Where two processes got different signals, the higher one.
            number = max(self.world.gather(number)) if numbers else 0
        if not number:
            return
        if self.finished:
            raise Stopped(
                number, f"{self.folder.path} is trained; evaluate it with: {self._command('evaluate')}"
            )
        if self._saved != (self.epoch, self.step):
            self._save()
        raise Stopped(number, f"after {self._reached()}; continue with: {self._command('train --resume')}")

    def _end_epoch(self, progress: Progress, board: Board) -> None:
        """Check, log, write best.pt, then last.pt: what a kill before that leaves, the resumed run undoes."""
        config, steps = self.config, len(self.feed)
        means = self.meter.over(self.world).means()
        apart = {"accuracy": ACCURACY, "clipped": CLIPPED}
        groups = {
            key: {name.removeprefix(begin): means.pop(name) for name in list(means) if name.startswith(begin)}
            for key, begin in apart.items()
        }
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * steps,
            "lr": learning_rate(config, (self.epoch + 1) * steps - 1, steps),
            # What the loss adds up has a key of its own: an objective may name a term as it likes.
            "loss": means.pop("loss"),
            "terms": means,
            **{key: group for key, group in groups.items() if group},
            "seconds": self.meter.seconds,
            "images_per_second": self.feed.images / self.meter.seconds,
        }
        # The checks and best.pt come before the save, and must not see them either.
        together(self.world, self._refuse_broken_weights)
        last = self.epoch + 1 == config.epochs
        result = None
        if self.check is not None and (last or (self.epoch + 1) % config.validate_every == 0):
            began = time.perf_counter()
            result = self.check(self.epoch)
            record |= {
                "natural": result.natural,
                "adversarial": result.adversarial,
                "check_seconds": time.perf_counter() - began,
            }
        self.epoch, self.step, self.meter = self.epoch + 1, 0, Meter()
        best = result is not None and self.early.better(result.robust, self.epoch)
        if self.early.due:
            record["stopped_early"] = True
        together(self.world, lambda: self._write(record, result, board, best=best))
        self._save()
        progress.line(epoch_line(record, config.epochs))
        if self.early.due:
            progress.line(f"{self.folder.path} is finished: {self._reached()}{self._early_end()}")

    def _write(
        self, record: dict[str, Any], result: HeldOutResult | None, board: Board, *, best: bool
    ) -> None:
        if not self.world.writes:
            return
        self.metrics.append(record)
        board.scalars(self.epoch, record)
        if result is not None and self.pictures is not None:
            board.images(self.epoch, self.pictures(self.epoch - 1))
        if best:
            state = {
                "format": checkpoint.FORMAT,
                "epoch": self.epoch,
                "robust": self.early.best,
                **self.weights(),
            }
            checkpoint.save(state, self.folder.checkpoints / "best.pt")

    def _settle(self) -> None:
        """Read the losses of the newest step, where that is still to be done."""
        try:
            self.stepper.settle()
        except NonFiniteLossError as failure:
            self._fail(failure)

    def _save(self) -> None:
        self._settle()
        together(self.world, self._refuse_broken_weights)
        state = self.state()
        together(self.world, lambda: self._keep(state, "last.pt", keep_previous=self._last_is_whole))
        self._saved, self._last_is_whole = (self.epoch, self.step), True

    def _keep(self, state: dict[str, Any], name: str, *, keep_previous: bool = False) -> None:
        if self.world.writes:
            checkpoint.save(state, self.folder.checkpoints / name, keep_previous=keep_previous)

    def _fail(self, failure: NonFiniteLossError, index: Tensor | None = None) -> NoReturn:
        """Stop on a loss that is not finite: that of images `index`, unless it is the step before that it tells of."""
        if failure.steps_ago:
            assert self._before is not None
            index, self.meter = self._before.index, self._before.meter
            self.step -= 1
            if self.average is not None:
                self.average.put_back()
        assert index is not None
        stopped = self._stopped(failure, index)
        together(self.world, lambda: _raise(stopped))
        raise stopped

    def _stopped(self, failure: NonFiniteLossError, index: Tensor) -> UserError:
        """Keep what gave a loss that is not finite, apart from the good checkpoints; the error that tells of it.

        The file has the images' indices beside `state`. Parameters and optimizers in it are those with which the loss
        was computed: earlier phases of the step have moved theirs, and nothing has moved since. Running statistics
        and loss scales have seen the batch. An average of the weights, the meters, epoch and step are those before
        the step.
        """
        # Every process raises, and those whose own loss is finite say no more than that another's is not.
        reasons = self.world.gather(str(failure))
        reason = min(reasons, key=lambda text: text.endswith("in another process"))
        index = torch.cat(self.world.gather(index.cpu()))
        if self.positions is not None:
            index = self.positions[index]
        state = self.state() | {"index": index}
        together(self.world, lambda: self._keep(state, "nonfinite.pt"))
        file = self.folder.checkpoints / "nonfinite.pt"
        broken = not all(bool(value.isfinite().all()) for value in self.model.parameters())
        look = (
            "the weights were no longer finite, since an earlier step's gradient was not: lower --lr"
            if broken
            else "look at those images, or lower --lr"
        )
        some = ", ".join(map(str, index[:8].tolist())) + (", ..." if len(index) > 8 else "")
        return UserError(
            f"{reason} in epoch {self.epoch + 1}, step {self.step + 1}, on {len(index)} images (indices {some}); all "
            f"indices and the weights that gave this loss are in {file}; {look}"
        )

    def _refuse_broken_weights(self) -> None:
        """An infinite weight first shows in the next loss; a checkpoint must not carry it there."""
        modules = {self.model, self.judged, *self.objective.networks().values()}
        if all(bool(v.isfinite().all()) for module in modules for v in module.state_dict().values()):
            return
        kept = (
            "before the first checkpoint"
            if self._saved[0] < 0
            else f"with the newest checkpoint from before that kept in {self.folder.checkpoints}"
        )
        raise UserError(
            f"the weights are not finite after step {self.step} of epoch {self.epoch + 1}: stopped, {kept}; lower --lr"
        )

    def _board_folder(self) -> Path | None:
        """Where this process writes events; None where it does not."""
        wanted = self.config.tensorboard and self.world.writes and find_spec("tensorboard") is not None
        return self.folder.tensorboard if wanted else None

    def _console(self) -> Console | None:
        return None if self.world.writes else Console(quiet=True)

    def _reached(self) -> str:
        counts = {"epoch": self.epoch, "step": self.step}
        parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
        return " and ".join(parts) or "no step"

    def _early_end(self) -> str:
        if not self.early.due:
            return ""
        return f", stopped early {self.early.without} checks after the best one, that of epoch {self.early.epoch}"

    def _command(self, what: str) -> str:
        return f"python -m robustfast.{what} {self.folder.path}"


def _raise(failure: UserError | None) -> None:
    if failure is not None:
        raise failure
