"""A cheap look at held-out images between epochs: is the model learning what its objective is about?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustfast.attacks import ThreeWayPGD, eval_mode
from robustfast.data import Dataset, Feed, feed
from robustfast.data.image_files import ImageFiles
from robustfast.distributed import World
from robustfast.models import Network
from robustfast.seeds import derive
from robustfast.training.config import TrainConfig
from robustfast.training.precision import Precision

__all__ = ["HeldOutCheck", "HeldOutResult", "spread"]

Images = TypeVar("Images", Dataset, ImageFiles)


@dataclass(frozen=True)
class HeldOutResult:
    """Accuracies as fractions.

    Attributes:
        natural: by way.
        adversarial: by way, each on images that attack this very way.
    """

    natural: dict[str, float]
    adversarial: dict[str, float]

    @property
    def robust(self) -> float:
        """What best.pt goes by: accuracy under attack of the robust way where it is trained, else of the first."""
        return self.adversarial.get("r", next(iter(self.adversarial.values())))


class HeldOutCheck:
    """Natural accuracy of an objective's ways, and that of the robust and non-robust way under the training attack.

    The training attack at full strength is short (5 to 10 steps) and so kinder than the evaluation's. Without
    ``config.hold_out`` the images are from the test split, hence the paper's numbers come from the last epoch and never
    from the best one.

    Args:
        model: the model; evaluated in eval mode and left as found.
        ways: the ways the objective trains.
        dataset: the test split, or training images that were set aside.
        config: the attack, batch size, and how many images to take, spread evenly over the split.
        precision: the arithmetic, as in training.
        world: the processes, all of which hold the same model; each checks its part of the images, in batches of its
            part of the batch size, and all get the same result.
    """

    def __init__(
        self,
        model: Network,
        ways: str,
        dataset: Dataset | ImageFiles,
        config: TrainConfig,
        precision: Precision,
        world: World | None = None,
    ) -> None:
        self.model = model
        self.ways = ways
        self.precision = precision
        self.world = world or World()
        chosen = spread(dataset, config.validate_images)
        part = self.world.part(len(chosen))
        self.images, self.first = len(chosen), part.start
        self.feed: Feed | None = None
        if part:  # more processes than images leave some with nothing to check
            self.feed = feed(
                chosen.take(torch.arange(part.start, part.stop)),
                -(-config.batch_size // self.world.size),
                loader=config.loader,
                seed=config.seed,
                device=precision.device,
                augment=False,
                channels_last=config.channels_last,
                shuffle=False,
                say=None,
            )
        self.attack = ThreeWayPGD(
            model,
            ways.replace("s", "") or ways,
            seed=derive(config.seed, "held out"),
            engine=config.attack_engine,
            **config.attack.keywords(),
        )

    def __call__(self, epoch: int) -> HeldOutResult:
        """Check after the epoch with this 0-based number."""
        zero = torch.zeros((), dtype=torch.int64, device=self.precision.device)
        natural = dict.fromkeys(self.ways, zero)
        adversarial = dict.fromkeys(self.attack.ways, zero)
        with eval_mode(self.model), self.precision.autocast():
            for x, y, index, _ in () if self.feed is None else self.feed.batches(0):
                attacked = self.attack(x, y, index + self.first, epoch=epoch)
                with torch.no_grad():
                    for way, logits in self.model.ways(x, self.ways).items():
                        natural[way] = natural[way] + _correct(logits, y)
                    for way, x_adv in attacked.items():
                        adversarial[way] = adversarial[way] + _correct(self.model.way(way)(x_adv), y)
        counts = self.world.sum(torch.stack([*natural.values(), *adversarial.values()])).tolist()
        shares = [count / self.images for count in counts]
        return HeldOutResult(
            dict(zip(natural, shares, strict=False)),
            dict(zip(adversarial, shares[len(natural) :], strict=True)),
        )


def spread(dataset: Images, images: int) -> Images:
    """At most `images` images at even distances: some data sets are sorted by class."""
    count = min(images, len(dataset))
    chosen = torch.arange(count) * len(dataset) // count
    return dataset.take(chosen)


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == y).sum()
