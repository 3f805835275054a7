"""The training loop: what a run's state is, and what moves it from step to step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from robustfast.data import Batch, Dataset, feed
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.models.stored_state import fits_the_model
from robustfast.models.sync_batch_norm import synchronise
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.seeds import derive
from robustfast.signals import Stopped, StopRequest
from robustfast.training import checkpoint
from robustfast.training.averaging import Average
from robustfast.training.board import Board
from robustfast.training.early_stopping import EarlyStopping
from robustfast.training.engine import Engine, NonFiniteLossError
from robustfast.training.held_out import HeldOutCheck, HeldOutResult
from robustfast.training.metrics import Meter, MetricsFile
from robustfast.training.model_shape import check_shape
from robustfast.training.pictures import Pictures
from robustfast.training.progress import Progress, epoch_line
from robustfast.training.run_folder import RunFolder, build_model
from robustfast.training.schedule import learning_rate
from robustfast.training.together import together

__all__ = ["Trainer"]


class Trainer:
    """The state of a run and what moves it: everything a checkpoint holds lives here.

    Args:
        folder: the run.
        dataset: the images to train on.
        device: where to train.
        world: the processes that train together. All hold the same weights; the one that writes keeps the folder.
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
        config = folder.config
        self.folder, self.config, self.device = folder, config, device
        self.world = world = world or World()
        self.positions = positions
        torch.manual_seed(derive(config.seed, "weights"))
        self.model = build_model(folder).to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        check_shape(self.model, config, dataset, device)
        if config.batch_norm == "sync":
            synchronise(self.model, world, device)
        self.objective = lookup("objective", OBJECTIVES, config.method)(
            self.model, config.objective, config.attack, seed=config.seed, engine=config.engine
        )
        self.objective.prepare(dataset)
        self.engine = Engine(self.objective, config, device, world)
        self.feed = feed(
            dataset,
            config.batch_size,
            seed=config.seed,
            device=device,
            loader=config.loader,
            augment=config.augment,
            rand_augment=config.rand_augment,
            crop=config.crop,
            channels_last=config.channels_last,
            rank=world.rank,
            world=world.size,
            say=self.say,
        )
        self.average = None
        if config.average != "none":
            self.average = Average(self.model, config, config.epochs * len(self.feed))
        self.check, self.pictures = None, None
        if held_out is not None:
            judged = self.model if self.average is None else self.average.model
            seen = judged, self.objective.main_ways, held_out
            # Images that were set aside for the checks are all used; of a test split, as many as asked for.
            number = config.hold_out or config.validate_images
            checked = replace(config, validate_images=number)
            self.check = HeldOutCheck(*seen, checked, self.engine.precision, world)
            if self._board_folder() is not None:
                self.pictures = Pictures(*seen, config, self.engine.precision)
        self.metrics = MetricsFile(folder.metrics)
        self.meter = Meter()
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the epoch after them
        self.early = EarlyStopping(config.early_stop)
        self._saved = (-1, -1)  # epoch and step of the newest checkpoint

    def say(self, text: str) -> None:
        """Print a line, in the one process that does."""
        if self.world.writes:
            print(text, flush=True)

    @property
    def finished(self) -> bool:
        return self.epoch == self.config.epochs or self.early.due

    def close(self) -> None:
        """Stop what the loader has running."""
        self.feed.close()

    def run(self) -> None:
        """Train until the last epoch is done or early stopping is due.

        Raises:
            Stopped: SIGTERM or SIGINT asked for it; the newest checkpoint holds every finished step.
            UserError: a loss that is not finite, or a disk that is full.
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
                terms = self.engine.step(batch, lr=learning_rate(self.config, number, steps))
            except NonFiniteLossError as failure:
                stopped = self._stopped(failure, batch)
                together(self.world, lambda stopped=stopped: _raise(stopped))
            if self.average is not None:
                self.average.update(number)
            self.meter.add(terms, len(batch.y))
            self.step += 1
            self.meter.seconds = time.perf_counter() - began
            progress.advance(round(len(batch.y) / batch.share))
            due = self.config.checkpoint_steps and (number + 1) % self.config.checkpoint_steps == 0
            if due and self.step < steps:
                self._save()
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
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * steps,
            "lr": learning_rate(config, (self.epoch + 1) * steps - 1, steps),
            # What the loss adds up has a key of its own: an objective may name a term as it likes.
            "loss": means.pop("loss"),
            "terms": means,
            "seconds": self.meter.seconds,
            "images_per_second": self.feed.images / self.meter.seconds,
        }
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
                **self._weights(),
            }
            checkpoint.save(state, self.folder.checkpoints / "best.pt")

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as plain values and tensors; all processes call it at once."""
        return {
            "format": checkpoint.FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            **self._weights(),
            "engine": self.engine.state_dict(),
            "meters": self.world.gather(self.meter.state_dict()),
            "metrics_bytes": self.metrics.bytes,
            "early": self.early.state_dict(),
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Continue from `state`, read from `path`; any number of processes may have written it.

        Raises:
            UserError: it is of another version, another model or other metrics.
        """
        with fits_the_model(path, f"put back the one that {self.folder.path} wrote, or start a new run"):
            self.folder.refuse_format(state["format"], path)
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.engine.load_state_dict(state["engine"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.early.load_state_dict(state["early"])
            self._share_out(state["meters"])
            counted = state["metrics_bytes"]
        if self.world.writes:
            self.metrics.rewind(counted)
        self._saved = (self.epoch, self.step)

    def _share_out(self, meters: list[dict[str, Any]]) -> None:
        """Each process goes on with its own sums; where there are more or fewer now, one of them with all."""
        if len(meters) == self.world.size:
            self.meter.load_state_dict(meters[self.world.rank], self.device)
        else:
            self.meter.load_state_dict(Meter.merged(meters), self.device, mine=self.world.writes)

    def _weights(self) -> dict[str, Any]:
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {"model": self.model.state_dict(), **average}

    def _save(self) -> None:
        state = self.state()
        together(self.world, lambda: self._keep(state, "last.pt", keep_previous=True))
        self._saved = (self.epoch, self.step)

    def _keep(self, state: dict[str, Any], name: str, *, keep_previous: bool = False) -> None:
        if self.world.writes:
            checkpoint.save(state, self.folder.checkpoints / name, keep_previous=keep_previous)

    def _stopped(self, failure: NonFiniteLossError, batch: Batch) -> UserError:
        """Keep the state and the batch that made the loss non-finite, apart from the good checkpoints."""
        # Every process raises, and those whose own loss is finite say no more than that another's is not.
        reasons = self.world.gather(str(failure))
        reason = min(reasons, key=lambda text: text.endswith("in another process"))
        index = torch.cat(self.world.gather(batch.index.cpu()))
        if self.positions is not None:
            index = self.positions[index]
        state = self.state() | {"index": index}
        together(self.world, lambda: self._keep(state, "nonfinite.pt"))
        file = self.folder.checkpoints / "nonfinite.pt"
        some = ", ".join(map(str, index[:8].tolist())) + (", ..." if len(index) > 8 else "")
        return UserError(
            f"{reason} in epoch {self.epoch + 1}, step {self.step + 1}, on {len(index)} images (indices {some}); all "
            f"indices and the weights before this step are in {file}; look at those images, or lower --lr"
        )

    def _refuse_broken_weights(self) -> None:
        """An infinite weight first shows in the next loss; a checkpoint must not carry it there."""
        if not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            raise UserError(
                f"the weights are not finite after epoch {self.epoch + 1}: stopped, with the checkpoint before it kept "
                f"in {self.folder.checkpoints}; lower --lr"
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
