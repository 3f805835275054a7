"""What a run is between two steps: everything that a checkpoint holds lives here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustfast.data import Dataset, feed
from robustfast.distributed import World
from robustfast.models import Network
from robustfast.models.stored_state import fits_the_model
from robustfast.models.sync_batch_norm import synchronise
from robustfast.objectives import OBJECTIVES
from robustfast.registry import lookup
from robustfast.seeds import derive
from robustfast.training import checkpoint
from robustfast.training.averaging import Average
from robustfast.training.compiled import compile_encoders
from robustfast.training.early_stopping import EarlyStopping
from robustfast.training.engine import Engine
from robustfast.training.metrics import Meter, MetricsFile
from robustfast.training.model_shape import check_shape
from robustfast.training.run_folder import RunFolder, build_model
from robustfast.training.start import start_from
from robustfast.training.whole_step import WholeStep

__all__ = ["RunState"]


class RunState:
    """The parts of a run, built as its configuration says, and how far it is.

    Args:
        folder: the run.
        dataset: the images to train on.
        device: where to train.
        world: the processes that train together. All hold the same weights; the one that writes keeps the folder.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch after them.
        meter: what this process has counted in those steps.
        early: what the checks have shown.
        judged: the model that checks and evaluations go by: the average of the weights where one is kept.

    Raises:
        UserError: a model, objective or loader that does not fit the images or cannot run here.
    """

    def __init__(
        self, folder: RunFolder, dataset: Dataset, device: torch.device, world: World | None = None
    ) -> None:
        config = folder.config
        self.folder, self.config, self.device = folder, config, device
        self.world = world = world or World()
        torch.manual_seed(derive(config.seed, "weights"))
        self.model = build_model(folder).to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        check_shape(self.model, config, dataset, device)
        if config.batch_norm == "sync":
            synchronise(self.model, world, device)
        if config.engine == "compile":
            compile_encoders(self.model, say=self.say)
        self.objective = lookup("objective", OBJECTIVES, config.method)(
            self.model, config.objective, config.attack, seed=config.seed, engine=config.attack_engine
        )
        self.objective.world = world
        self.engine = Engine(self.objective, config, device, world)
        whole = config.whole_step == "graph"
        self.stepper = WholeStep(self.engine, say=self.say) if whole else self.engine
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
        self.metrics = MetricsFile(folder.metrics)
        self.meter = Meter()
        self.epoch = 0
        self.step = 0
        self.early = EarlyStopping(config.early_stop)
        self._saved = (-1, -1)  # epoch and step of the newest checkpoint
        self._last_is_whole = True  # else last.pt must not take the place of previous.pt, the only good one

    def start(self) -> None:
        """Take the weights that the configuration has the run start from.

        Raises:
            UserError: they are not there, or of another model, or none from which the objective can train.
        """
        if self.config.start_from:
            start_from(self.model, self.config.start_from, say=self.say)
            if self.average is not None:
                self.average.model.load_state_dict(self.model.state_dict())
        self.objective.started()

    @property
    def judged(self) -> Network:
        return self.model if self.average is None else self.average.model

    @property
    def finished(self) -> bool:
        return self.epoch == self.config.epochs or self.early.due

    def say(self, text: str) -> None:
        """Print a line, in the one process that does."""
        if self.world.writes:
            print(text, flush=True)

    def state(self) -> dict[str, Any]:
        """Everything that decides how training goes on, as plain values and tensors; all processes call it at once."""
        return {
            "format": checkpoint.FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            **self.weights(),
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
        self._last_is_whole = path.name != checkpoint.PREVIOUS

    def _share_out(self, meters: list[dict[str, Any]]) -> None:
        """Each process goes on with its own sums; where there are more or fewer now, one of them with all."""
        if len(meters) == self.world.size:
            self.meter.load_state_dict(meters[self.world.rank], self.device)
        else:
            self.meter.load_state_dict(Meter.merged(meters), self.device, mine=self.world.writes)

    def weights(self) -> dict[str, Any]:
        """The trained weights and, where one is kept, their average."""
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {"model": self.model.state_dict(), **average}

    def close(self) -> None:
        """Stop what the loader has running."""
        self.feed.close()
