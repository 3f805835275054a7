"""From a configuration to a trained run folder, and from a stopped run's folder on to the same end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import robustfast
from robustfast.attacks import folding
from robustfast.data import Dataset, load
from robustfast.data.fitting import fitting
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.ops.backend import configured_backend
from robustfast.signals import Stopped, signal_behind
from robustfast.together import together
from robustfast.training import checkpoint
from robustfast.training.config import TrainConfig, differences
from robustfast.training.early_stopping import set_aside
from robustfast.training.run_folder import RunFolder, resolve_device
from robustfast.training.run_lock import run_lock
from robustfast.training.threads import cpu_threads
from robustfast.training.trainer import Trainer

__all__ = ["data_folder", "fit", "resume"]


def fit(config: TrainConfig, world: World | None = None) -> Path:
    """Train a new run to its end.

    Processes that torchrun may start again (``--max-restarts``) go on with the run that is in `config.out`.

    Args:
        config: what to train; `config.out` None takes the next free ``runs/PRESET-seedN``.
        world: the processes that train together, all of which call this.

    Returns:
        The run folder.

    Raises:
        UserError: data missing or damaged, a folder that cannot be written or is not empty, CUDA absent, a backend or
            engine that cannot run here, a loss that is not finite (its weights and the images' indices are kept in
            checkpoints/nonfinite.pt), weights that are not finite, or another process of `world` that is gone.
        Stopped: SIGTERM or SIGINT, after the step that was under way is finished and checkpointed.
    """
    world = world or World()
    # One process decides for all: a machine that cannot see the folder then says so, instead of starting a run.
    if config.out is not None and world.broadcast(
        _started_again(world) and (config.out / "config.json").exists()
    ):
        if world.writes:
            count = f" ({world.restarts} so far)" if world.restarts else ""
            print(f"restarted by torchrun{count}: the run in {config.out} goes on", flush=True)
        return resume(config.out, config, world)
    device = together(world, lambda: _check(config))
    images = together(world, lambda: _images(config))
    there = config.out is not None and config.out.exists()
    folder = together(world, lambda: RunFolder.reserve(config, images.training) if world.writes else None)
    try:
        return _train(world.broadcast(folder), images, device, world, new=True)
    except UserError:
        if folder is not None and not there:
            # What was refused before it was a run leaves nothing; a folder with anything in it stays.
            with suppress(OSError):
                folder.path.rmdir()
        raise


def resume(path: Path, config: TrainConfig | None = None, world: World | None = None) -> Path:
    """Train an existing run to its end, from its newest checkpoint.

    On the CPU with the same number of threads and processes the result is bit-equal to a run that never stopped.

    Args:
        path: the run folder.
        config: None takes the stored configuration. Otherwise it must equal the stored one in all but `MAY_CHANGE`.
        world: the processes that train together, all of which call this; not necessarily as many as before.

    Returns:
        The run folder.

    Raises:
        UserError: no run there, another configuration, or anything that `fit` raises for.
        Stopped: as `fit`.
    """
    world = world or World()
    folder = together(world, lambda: _stored(path, config))
    together(world, lambda: _refuse_busy(path) if world.writes else None)
    device = together(world, lambda: _check(folder.config, resumed=True))
    images = together(world, lambda: _images(folder.config))
    if folder.version != robustfast.__version__ and world.writes:
        print(
            f"{path} was started by robustfast {folder.version}, this is {robustfast.__version__}: what is left may "
            f"come out otherwise; for the same bits go on with that version"
        )
    return _train(folder, images, device, world, new=False)


def data_folder(config: TrainConfig) -> Path:
    """Where the data sets lie: `config.data_dir`, else $ROBUSTFAST_DATA, else ./data."""
    return config.data_dir or Path(os.environ.get("ROBUSTFAST_DATA") or "data")


def _stored(path: Path, config: TrainConfig | None) -> RunFolder:
    """The run in `path`, with what may change taken from `config`."""
    folder = RunFolder.open(path)
    if config is None:
        return folder
    if changed := differences(config, folder.config):
        raise UserError(
            f"--resume {path} continues the run as it was started: {', '.join(changed)}; leave these flags out, or "
            f"start a new run with --out"
        )
    return replace(folder, config=config)


def _refuse_busy(path: Path) -> None:
    """Before the data is read, which may take minutes; the lock itself is taken once the run can go on."""
    with run_lock(path, say=lambda _: None):
        pass


def _started_again(world: World) -> bool:
    """Whether a run that is there already may be these processes' own.

    Torchrun counts processes that died. It does not count a start with machines that have come back or have gone, so
    wherever it may start its command again, a run of that command is taken for the same one.
    """
    return world.restarts > 0 or _may_restart()


def _may_restart() -> bool:
    return os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def _check(config: TrainConfig, *, resumed: bool = False) -> torch.device:
    """Refuse what cannot run here before anything is read or written; return the device."""
    device = resolve_device(config.device)
    if config.engine == "graph" and device.type != "cuda":
        raise UserError("--engine graph replays CUDA graphs and needs a GPU; on the CPU use --engine eager")
    if resumed:
        return device
    # A run begun on a machine with more processors still resumes here, slowly: it keeps its number and so its bits.
    if config.threads > (processors := os.cpu_count() or 1):
        raise UserError(
            f"--threads {config.threads}: expected at most {processors}, the processors of this machine"
        )
    if config.out is None and _may_restart():
        raise UserError(
            "--max-restarts without --out: processes that are started again could not find their run; name its folder"
        )
    return device


class _Images(NamedTuple):
    """What a run sees of its data set: the images it trains on, those it checks with, and where the first ones lie."""

    training: Dataset
    held_out: Dataset | None
    positions: Tensor | None


def _images(config: TrainConfig) -> _Images:
    training = load(config.dataset, "train", data_folder(config), image_size=config.image_size)
    if config.hold_out:
        return _Images(*set_aside(training, config.hold_out, seed=config.seed))
    if not (config.validate_every and config.validate_images):
        return _Images(training, None, None)
    test = load(config.dataset, "test", data_folder(config), image_size=config.image_size)
    return _Images(training, fitting(test, training.channels, (training.height, training.width)), None)


def _train(folder: RunFolder, images: _Images, device: torch.device, world: World, *, new: bool) -> Path:
    config = folder.config
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(configured_backend(config.backend))
        stack.enter_context(folding(config.fold))
        stack.enter_context(cpu_threads(config.threads))
        stack.enter_context(_fixed_shapes(device))
        trainer = together(
            world,
            lambda: Trainer(
                folder, images.training, device, world, held_out=images.held_out, positions=images.positions
            ),
        )
        stack.enter_context(closing(trainer))
        # What the objective prepares may depend on it; a run killed before its first checkpoint has nothing else.
        fresh = new or not checkpoint.present(folder.checkpoints)
        together(world, lambda: trainer.start() if fresh else None)
        # Apart, since the processes may share out what is to be done.
        together(world, lambda: trainer.objective.prepare(images.training))

        def occupy() -> None:
            stack.enter_context(run_lock(folder.path))
            # Only now: a mistake that the model or the objective refuses leaves no run behind.
            if new:
                folder.store()
            folder.checkpoints.mkdir(exist_ok=True)

        together(world, lambda: occupy() if world.writes else None)
        together(world, lambda: _restore(trainer))
        now = torch.get_num_threads()
        if folder.threads not in (None, now) and device.type == "cpu":
            trainer.say(
                f"{folder.path} began with {folder.threads} CPU threads and goes on with {now}: sums are rounded "
                f"otherwise; for the same bits set OMP_NUM_THREADS={folder.threads}"
            )
        try:
            trainer.run()
        except KeyboardInterrupt as stop:
            then = str(stop) or f"continue with: python -m robustfast.train --resume {folder.path}"
            raise Stopped(signal_behind(stop), then) from None
    return folder.path


def _restore(trainer: Trainer) -> None:
    """Put the run back to where its newest checkpoint left it, or to its start."""
    found = checkpoint.load_newest(trainer.folder.checkpoints, say=trainer.say)
    if found is not None:
        trainer.restore(*found)
    elif trainer.world.writes:
        trainer.metrics.rewind(0)


@contextmanager
def _fixed_shapes(device: torch.device) -> Iterator[None]:
    """Let cuDNN time its algorithms once per shape: training has a handful of shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
