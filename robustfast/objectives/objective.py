"""What an objective is: a generator that says what one batch does, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustfast.attacks import AttackConfig
from robustfast.data import Dataset
from robustfast.distributed import World
from robustfast.errors import UserError
from robustfast.models import NETWORKS, Network

__all__ = ["Objective", "Phase", "accuracies"]


@dataclass(frozen=True)
class Phase:
    """One step, of one optimizer or of several from one gradient.

    Attributes:
        optimizer: the optimizer whose parameters alone receive this gradient and then move; several names where they
            move by different settings.
        loss: scalar with a graph.
        terms: what `loss` adds up, detached scalars by name, for the log.
        accuracy: shares of the batch that were classified right, as `accuracies` gives them, for the log too.
    """

    optimizer: str | tuple[str, ...]
    loss: Tensor
    terms: dict[str, Tensor]
    accuracy: dict[str, Tensor] = field(default_factory=dict)

    @property
    def optimizers(self) -> tuple[str, ...]:
        """`optimizer`, always as a tuple."""
        return (self.optimizer,) if isinstance(self.optimizer, str) else self.optimizer


def accuracies(logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
    """The share of labels y [B] that each of some logits [B, C] has right: detached float32 scalars by name.

    They are those of training, with the batch norms and dropout in train mode. Nothing is read on the host.
    """
    right = torch.stack([value.detach() for value in logits.values()]).argmax(2) == y
    return dict(zip(logits, right.float().mean(1).unbind(), strict=True))


class Objective:
    """A training objective over a network.

    The engine calls `prepare` once, then for every batch `begin` and `phases`; around each phase it clears
    gradients, scales, runs backward and steps. An objective does none of these, and leaves every module in the
    mode it found it in. Where a batch is computed in parts, each part has a `phases` of its own, and all of them
    come to a phase before any goes on to the next.

    Args:
        model: what is trained.
        config: an instance of the class attribute `Config`.
        attack: the training attack's strength.
        seed: the run's seed; every draw derives from it, the epoch and the samples' global indices.
        engine: how attacks run, as for `robustfast.attacks.PGD`.

    Attributes:
        Config: dataclass of the objective's own settings (``--objective.FIELD``).
        model, config, strength, seed, engine: the arguments; `strength` is `attack`.
        world: the processes that train together; whoever builds the run sets it before `prepare`.
        epoch, progress: as `begin` last set them.
        trains: the class of the networks it can train; `Network` is all that are read in its `main_ways`.
        main_ways: the ways this objective trains, of an instance as `trained_ways` has it; the others keep the weights
            they were given.
        protocol: the evaluation of its paper, as ``--protocol`` takes it.
        attack: makes the adversarial images of a batch, called as ``attack(x, y, index, **self.now())``; None
            where the objective attacks nothing.

    Raises:
        UserError: a network of another kind.
    """

    Config: ClassVar[type]
    trains: ClassVar[type[Network]] = Network
    main_ways: ClassVar[str]
    protocol: ClassVar[str] = "aat"

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        self.main_ways = self.trained_ways(config)  # type: ignore[misc]
        if not isinstance(model, self.trains) or not set(self.main_ways) <= set(model.readings):
            own = f" of ways {', '.join(model.readings)}" if isinstance(model, self.trains) else ""
            raise UserError(
                f"{type(self).__name__} trains ways {', '.join(self.main_ways)} of a {self.trains.__name__}, got a "
                f"{type(model).__name__}{own}: give --network {' or '.join(self._networks(self.main_ways))}"
            )
        self.model = model
        self.config = config
        self.strength = attack
        self.seed = seed
        self.engine = engine
        self.world = World()
        self.epoch = 0
        self.progress = 0.0
        self.attack: Callable[..., Any] | None = None

    @classmethod
    def trained_ways(cls, settings: Any) -> str:
        """The ways that are trained with `settings`, an instance of `Config`: `main_ways`, unless they decide it."""
        return cls.main_ways

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        """What a batch costs, in F an image: one forward of one encoder, and about what each backward costs too.

        For estimates of time. Unless told otherwise, an attack of a forward and an input gradient a step, and training
        passes of 3F over natural and over adversarial images.

        Args:
            settings: an instance of `Config`.
            strength: the training attack's.
        """
        return 2 * strength.steps + 6

    @classmethod
    def preparation_passes(cls, settings: Any) -> float:
        """F per training image that `prepare` takes."""
        return 0.0

    @classmethod
    def _networks(cls, ways: str) -> list[str]:
        """The names of the networks that it can train in these ways."""
        found = []
        for name, build in NETWORKS.items():
            kind, settings = getattr(build, "func", build), getattr(build, "keywords", {})
            if issubclass(kind, cls.trains) and set(ways) <= set(settings.get("readings", kind.readings)):
                found.append(name)
        return found

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        """Optimizer name -> the parameters it moves. The others receive no gradient."""
        chosen = {id(p) for way in self.main_ways for p in self.model.way(way).parameters()}
        return {"model": [p for p in self.model.parameters() if id(p) in chosen]}

    def optimizers(self) -> dict[str, dict[str, Any]]:
        """Optimizer name -> what it has otherwise than the run's configuration says, by field.

        "lr" is a factor, as the schedule goes for all; "optimizer", "momentum", "nesterov", "betas", "weight_decay",
        "clip_norm" and "clip_value" replace the field of that name.
        """
        return {}

    def networks(self) -> dict[str, nn.Module]:
        """Networks of this objective beside the model, such as discriminators, by name.

        Checkpoints hold their weights. They are built with the objective, on the model's device.
        """
        return {}

    def started(self) -> None:
        """Called once a new run's model has the weights that it starts from, its own or those of ``--start-from``.

        Raises:
            UserError: the objective cannot train from these.
        """

    def prepare(self, dataset: Dataset) -> None:
        """Called once before the first step, with the training split. Most objectives need nothing from it.

        All processes call it at once. It may share out work over `self.world`, where no process fails alone in between.
        """

    def begin(self, epoch: int, progress: float) -> None:
        """Called before every batch.

        Args:
            epoch: counts from 0; keys the draws of the attacks.
            progress: share of the training that is done, in [0, 1]; drives the growth of the attack's strength.
        """
        self.epoch = epoch
        self.progress = progress

    def now(self) -> dict[str, Any]:
        """What an attack's call needs to know of this moment: the keywords `epoch`, `eps` and `step_size`."""
        eps, step_size = self.strength.at(self.progress)
        return {"epoch": self.epoch, "eps": eps, "step_size": step_size}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        """What one batch does.

        Args:
            x: images [B, C, H, W] in [0, 1].
            y: labels, int64 [B].
            index: global sample indices, int64 [B].
        """
        raise NotImplementedError
