"""The training loop: from a configuration to a run folder, and from a killed run's folder on to the same end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from robustfast.attacks import eval_mode
from robustfast.data import Batch, Dataset, feed, load
from robustfast.errors import UserError
from robustfast.models import ThreeWay
from robustfast.models.stored_state import fits_the_model
from robustfast.objectives import OBJECTIVES
from robustfast.ops.backend import configured_backend
from robustfast.registry import lookup
from robustfast.seeds import derive
from robustfast.training import checkpoint
from robustfast.training.config import TrainConfig, differences
from robustfast.training.engine import Engine, NonFiniteLossError
from robustfast.training.held_out import HeldOutCheck
from robustfast.training.metrics import Board, Meter, MetricsFile
from robustfast.training.progress import Progress
from robustfast.training.run_folder import RunFolder, build_model, resolve_device
from robustfast.training.schedule import learning_rate
from robustfast.training.threads import cpu_threads

__all__ = ["data_folder", "fit", "resume"]

FORMAT = 1
"""Version of the checkpoint's layout."""


def fit(config: TrainConfig) -> Path:
    """Train a new run to its end.

    Args:
        config: what to train; `config.out` None takes the next free ``runs/PRESET-seedN``.

    Returns:
        The run folder.

    Raises:
        UserError: data missing or damaged, a folder that cannot be written or is not empty, CUDA absent, a backend or
            engine that cannot run here, or a loss that is not finite (its state is kept in checkpoints/nonfinite.pt).
    """
    device = _check(config)
    # A run begun on a machine with more processors still resumes here, slowly: it keeps its number and so its bits.
    if config.threads > (processors := os.cpu_count() or 1):
        raise UserError(
            f"--threads {config.threads}: expected at most {processors}, the processors of this machine"
        )
    dataset = load(config.dataset, "train", data_folder(config), image_size=config.image_size)
    return _train(RunFolder.reserve(config, dataset), dataset, device, new=True)


def resume(path: Path, config: TrainConfig | None = None) -> Path:
    """Train an existing run to its end, from its newest checkpoint.

    On the CPU with the same number of threads the result is bit-equal to a run that never stopped.

    Args:
        path: the run folder.
        config: None takes the stored configuration. Otherwise it must equal the stored one in all but `MAY_CHANGE`.

    Returns:
        The run folder.

    Raises:
        UserError: no run there, another configuration, or anything that `fit` raises for.
    """
    folder = RunFolder.open(path)
    if config is not None:
        if changed := differences(config, folder.config):
            raise UserError(
                f"--resume {path} continues the run as it was started: {', '.join(changed)}; leave these flags out, or "
                f"start a new run with --out"
            )
        folder = replace(folder, config=config)
    device = _check(folder.config)
    config = folder.config
    dataset = load(config.dataset, "train", data_folder(config), image_size=config.image_size)
    return _train(folder, dataset, device, new=False)


def data_folder(config: TrainConfig) -> Path:
    """Where the data sets lie: `config.data_dir`, else $ROBUSTFAST_DATA, else ./data."""
    return config.data_dir or Path(os.environ.get("ROBUSTFAST_DATA") or "data")


def _check(config: TrainConfig) -> torch.device:
    """Refuse what cannot run here before anything is read or written; return the device."""
    device = resolve_device(config.device)
    if config.engine == "graph" and device.type != "cuda":
        raise UserError("--engine graph replays CUDA graphs and needs a GPU; on the CPU use --engine eager")
    return device


def _train(folder: RunFolder, dataset: Dataset, device: torch.device, *, new: bool) -> Path:
    devices = [device] if device.type == "cuda" else []
    config = folder.config
    with (
        torch.random.fork_rng(devices),
        configured_backend(config.backend),
        cpu_threads(config.threads),
        _fixed_shapes(device),
    ):
        trainer = Trainer(folder, dataset, device)
        # Only now: a mistake that the model or the objective refuses leaves no run behind.
        if new:
            folder.store()
        folder.checkpoints.mkdir(exist_ok=True)
        found = checkpoint.load_newest(folder.checkpoints)
        if found is not None:
            trainer.restore(*found)
        else:
            trainer.metrics.rewind(0)
        try:
            trainer.run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"continue with: python -m robustfast.train --resume {folder.path}"
            ) from None
    return folder.path


class Trainer:
    """The state of a run and what moves it: everything a checkpoint holds lives here.

    Args:
        folder: the run.
        dataset: its training split.
        device: where to train.
    """

    def __init__(self, folder: RunFolder, dataset: Dataset, device: torch.device) -> None:
        config = folder.config
        self.folder, self.config, self.device = folder, config, device
        torch.manual_seed(derive(config.seed, "weights"))
        self.model = build_model(folder).to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        _check_shape(self.model, config, dataset, device)
        self.objective = lookup("objective", OBJECTIVES, config.method)(
            self.model, config.objective, config.attack, seed=config.seed, engine=config.engine
        )
        self.objective.prepare(dataset)
        self.engine = Engine(self.objective, config, device)
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
        )
        self.check = None
        if config.validate_every and config.validate_images:
            test = load(config.dataset, "test", data_folder(config), image_size=config.image_size)
            self.check = HeldOutCheck(
                self.model, self.objective.main_ways, test, config, self.engine.precision
            )
        self.metrics = MetricsFile(folder.metrics)
        self.meter = Meter()
        self.epoch = 0  # finished epochs
        self.step = 0  # finished steps of the epoch after them
        self.best = -1.0
        # Dropout is the one thing in training that draws from torch's global generators.
        torch.manual_seed(derive(config.seed, "dropout"))

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return len(self.feed.dataset)

    def run(self) -> None:
        """Train until the last epoch is done."""
        config, path = self.config, self.folder.path
        if self.epoch == config.epochs:
            print(f"{path} is finished: {self.epoch} epochs")
            return
        done = self.epoch * self.images + self.meter.images
        with (
            Progress(config.epochs * self.images, done=done) as progress,
            Board(self._board_folder(progress), self.epoch) as board,
        ):
            verb = (
                f"continuing {path} after {self._reached()}"
                if done
                else f"training {config.preset} into {path}"
            )
            progress.line(
                f"{verb}: {config.epochs} epochs of {self.images} images, {len(self.feed)} steps each, on {self.device}"
            )
            while self.epoch < config.epochs:
                progress.epoch(self.epoch + 1, config.epochs)
                self._train_epoch(progress)
                self._end_epoch(progress, board)

    def _train_epoch(self, progress: Progress) -> None:
        steps = len(self.feed)
        self.model.train()
        began = time.perf_counter() - self.meter.seconds
        for batch in self.feed.batches(self.epoch, start=self.step):
            number = self.epoch * steps + self.step
            self.objective.begin(self.epoch, number / (self.config.epochs * steps))
            try:
                terms = self.engine.step(batch, lr=learning_rate(self.config, number, steps))
            except NonFiniteLossError as failure:
                raise self._stopped(failure, batch) from None
            self.meter.add(terms, len(batch.y))
            self.step += 1
            progress.advance(len(batch.y))
            due = self.config.checkpoint_steps and (number + 1) % self.config.checkpoint_steps == 0
            if due and self.step < steps:
                self.meter.seconds = time.perf_counter() - began
                self._save()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.meter.seconds = time.perf_counter() - began

    def _end_epoch(self, progress: Progress, board: Board) -> None:
        """Check, log, write best.pt, then last.pt: what a kill before that leaves, the resumed run undoes."""
        config, steps = self.config, len(self.feed)
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * steps,
            "lr": learning_rate(config, (self.epoch + 1) * steps - 1, steps),
            **_losses(self.meter.means()),
            "seconds": self.meter.seconds,
            "images_per_second": self.images / self.meter.seconds,
        }
        robust = None
        last = self.epoch + 1 == config.epochs
        if self.check is not None and (last or (self.epoch + 1) % config.validate_every == 0):
            began = time.perf_counter()
            result = self.check(self.epoch)
            record |= {
                "natural": result.natural,
                "adversarial": result.adversarial,
                "check_seconds": time.perf_counter() - began,
            }
            robust = result.robust
        self.epoch, self.step, self.meter = self.epoch + 1, 0, Meter()
        self._refuse_broken_weights()
        self.metrics.append(record)
        board.write(self.epoch, record)
        if robust is not None and robust > self.best:
            self.best = robust
            state = {
                "format": FORMAT,
                "epoch": self.epoch,
                "robust": robust,
                "model": self.model.state_dict(),
            }
            checkpoint.save(state, self.folder.checkpoints / "best.pt")
        self._save()
        progress.line(_epoch_line(record, config.epochs))

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as plain values and tensors."""
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "format": FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "engine": self.engine.state_dict(),
            "rng": rng,
            "meter": self.meter.state_dict(),
            "metrics_bytes": self.metrics.bytes,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Continue from `state`, read from `path`.

        Raises:
            UserError: it is of another version, another model or other metrics.
        """
        with fits_the_model(path, f"put back the one that {self.folder.path} wrote, or start a new run"):
            if state["format"] != FORMAT:
                raise UserError(
                    f"{path} has checkpoint format {state['format']}, this version reads {FORMAT}: start a new run, or "
                    f"continue it with the version that config.json names"
                )
            self.model.load_state_dict(state["model"])
            self.engine.load_state_dict(state["engine"])
            self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
            self.meter.load_state_dict(state["meter"], self.device)
            self.metrics.rewind(state["metrics_bytes"])
            torch.set_rng_state(state["rng"]["cpu"])
            if self.device.type == "cuda" and "cuda" in state["rng"]:
                torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)

    def _save(self) -> None:
        checkpoint.save(self.state(), self.folder.checkpoints / "last.pt", keep_previous=True)

    def _stopped(self, failure: NonFiniteLossError, batch: Batch) -> UserError:
        """Keep the state and the batch that made the loss non-finite, apart from the good checkpoints."""
        file = self.folder.checkpoints / "nonfinite.pt"
        index = batch.index.cpu()
        checkpoint.save(self.state() | {"index": index}, file)
        some = ", ".join(map(str, index[:8].tolist())) + (", ..." if len(index) > 8 else "")
        return UserError(
            f"{failure} in epoch {self.epoch + 1}, step {self.step + 1}, on {len(index)} images (indices {some}); all "
            f"indices and the weights before this step are in {file}; look at those images, or lower --lr"
        )

    def _refuse_broken_weights(self) -> None:
        """An infinite weight first shows in the next loss; a checkpoint must not carry it there."""
        if not all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            raise UserError(
                f"the weights are not finite after epoch {self.epoch}: stopped, with the checkpoint before it kept in "
                f"{self.folder.checkpoints}; lower --lr"
            )

    def _board_folder(self, progress: Progress) -> Path | None:
        if not self.config.tensorboard:
            return None
        if find_spec("tensorboard") is None:
            progress.line("no TensorBoard events: tensorboard is not installed (pip install tensorboard)")
            return None
        return self.folder.tensorboard

    def _reached(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")


def _losses(means: dict[str, float]) -> dict[str, Any]:
    """The loss, and what it adds up below a key of their own: an objective may name a term as it likes."""
    return {"loss": means.pop("loss"), "terms": means}


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {record['loss']:.4f}"]
    for name in ("natural", "adversarial"):
        if name in record:
            accuracies = " ".join(f"{way.upper()} {value:.2%}" for way, value in record[name].items())
            parts.append(f"{name} {accuracies}")
    seconds = record["seconds"] + record.get("check_seconds", 0.0)
    parts += [f"{record['images_per_second']:,.0f} images/s", f"{seconds:.1f} s"]
    return "  ".join(parts)


def _check_shape(model: ThreeWay, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
    """One black image through the model: a backbone that takes other images says so before anything is written."""
    shape = (dataset.channels, dataset.height, dataset.width)
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape, device=device))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--model {config.model} does not fit the {'x'.join(map(str, shape))} images of {config.dataset}: {error}"
        ) from error


@contextmanager
def _fixed_shapes(device: torch.device) -> Iterator[None]:
    """Let cuDNN time its algorithms once per shape: training has a handful of shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
