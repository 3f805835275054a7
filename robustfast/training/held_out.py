"""A cheap look at held-out images between epochs: is the model learning what its objective is about?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustfast.attacks import ThreeWayPGD, eval_mode
from robustfast.data import Dataset, feed
from robustfast.data.image_files import ImageFiles
from robustfast.models import ThreeWay
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

    The training attack at full strength is short (5 to 10 steps) and so kinder than the evaluation's. Its images are
    from the test split, hence the paper's numbers come from the last epoch and never from the best one.

    Args:
        model: the model; evaluated in eval mode and left as found.
        ways: the ways the objective trains.
        dataset: the test split.
        config: the attack, batch size, and how many images to take, spread evenly over the split.
        precision: the arithmetic, as in training.
    """

    def __init__(
        self, model: ThreeWay, ways: str, dataset: Dataset, config: TrainConfig, precision: Precision
    ) -> None:
        self.model = model
        self.ways = ways
        self.precision = precision
        self.feed = feed(
            spread(dataset, config.validate_images),
            config.batch_size,
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
            engine=config.engine,
            **config.attack.keywords(),
        )

    def __call__(self, epoch: int) -> HeldOutResult:
        """Check after the epoch with this 0-based number."""
        zero = torch.zeros((), dtype=torch.int64, device=self.precision.device)
        natural = dict.fromkeys(self.ways, zero)
        adversarial = dict.fromkeys(self.attack.ways, zero)
        images = 0
        with eval_mode(self.model), self.precision.autocast():
            for x, y, index, _ in self.feed.batches(0):
                images += len(y)
                attacked = self.attack(x, y, index, epoch=epoch)
                with torch.no_grad():
                    for way, logits in self.model.ways(x, self.ways).items():
                        natural[way] = natural[way] + _correct(logits, y)
                    for way, x_adv in attacked.items():
                        adversarial[way] = adversarial[way] + _correct(self.model.way(way)(x_adv), y)
        return HeldOutResult(
            {way: int(count) / images for way, count in natural.items()},
            {way: int(count) / images for way, count in adversarial.items()},
        )


def spread(dataset: Images, images: int) -> Images:
    """At most `images` images at even distances: some data sets are sorted by class."""
    count = min(images, len(dataset))
    chosen = torch.arange(count) * len(dataset) // count
    return dataset.take(chosen)


def _correct(logits: Tensor, y: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == y).sum()
