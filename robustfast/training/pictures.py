"""What the attack of a run does to its images, to look at while it trains."""

from __future__ import annotations

from torch import Tensor

from robustfast.attacks import ThreeWayPGD, eval_mode
from robustfast.data import Dataset, feed
from robustfast.models import Network
from robustfast.seeds import derive
from robustfast.training.config import TrainConfig
from robustfast.training.held_out import spread
from robustfast.training.precision import Precision

__all__ = ["Pictures"]

IMAGES = 8
"""Few enough to cost nothing beside a check, and to be seen side by side."""


class Pictures:
    """A handful of held-out images, as they are and as the training attack leaves them now.

    The attack runs eagerly: a batch of its own would make a compiled or captured one be built again at every check.

    Args:
        model: what is attacked; evaluated in eval mode and left as found.
        ways: the ways the objective trains; each but the standard way attacks images of its own.
        dataset: where the images come from, at even distances.
        config: the attack.
        precision: the arithmetic, as in training.
    """

    def __init__(
        self, model: Network, ways: str, dataset: Dataset, config: TrainConfig, precision: Precision
    ) -> None:
        self.model, self.precision = model, precision
        source = feed(
            spread(dataset, IMAGES),
            IMAGES,
            seed=config.seed,
            device=precision.device,
            channels_last=config.channels_last,
            shuffle=False,
            say=None,
        )
        self.batch = next(source.batches(0))
        source.close()
        seed = derive(config.seed, "pictures")
        ways = ways.replace("s", "") or ways
        self.attack = ThreeWayPGD(model, ways, seed=seed, engine="eager", **config.attack.keywords())

    def __call__(self, epoch: int) -> dict[str, Tensor]:
        """The images [B, C, H, W] under "images/natural" and "images/adversarial_WAY"."""
        x, y, index, _ = self.batch
        with eval_mode(self.model), self.precision.autocast():
            attacked = self.attack(x, y, index, epoch=epoch)
        return {"images/natural": x} | {f"images/adversarial_{way}": x_adv for way, x_adv in attacked.items()}
