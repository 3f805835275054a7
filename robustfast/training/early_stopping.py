"""Stop when held-out robust accuracy has not risen for a while, and set the images aside that it is measured on.

Source: Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning", ICML 2020: robust accuracy falls long
before training ends, and a validation set split off the training images finds the checkpoint before it does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from torch import Tensor

from robustfast.data import Dataset, draws
from robustfast.data.image_files import ImageFiles
from robustfast.errors import UserError
from robustfast.seeds import derive

__all__ = ["EarlyStopping", "set_aside"]

Images = TypeVar("Images", Dataset, ImageFiles)


@dataclass
class EarlyStopping:
    """What the checks of a run have shown.

    Attributes:
        patience: checks without a better one after which the run ends; 0: it never does.
        best: the highest robust accuracy so far, as a fraction; -1 before the first check.
        epoch: finished epochs at that check.
        without: checks since.
    """

    patience: int
    best: float = -1.0
    epoch: int = 0
    without: int = 0

    def better(self, robust: float, epoch: int) -> bool:
        """Count a check, and tell whether it is better than all before it."""
        if robust > self.best:
            self.best, self.epoch, self.without = robust, epoch, 0
            return True
        self.without += 1
        return False

    @property
    def due(self) -> bool:
        """Whether the run ends here."""
        return 0 < self.patience <= self.without

    def state_dict(self) -> dict[str, Any]:
        state = asdict(self)
        del state["patience"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.epoch, self.without = state["best"], state["epoch"], state["without"]


def set_aside(dataset: Images, images: int, *, seed: int) -> tuple[Images, Images, Tensor]:
    """Split a training split by lot; the lot depends on the seed and the number of images alone.

    Args:
        dataset: the training split.
        images: how many to hold out.
        seed: the run's seed.

    Returns:
        What is left to train on, what is held out, and where in `dataset` the former lies, int64 growing.

    Raises:
        UserError: nothing would be left to train on.
    """
    if images >= len(dataset):
        raise UserError(
            f"--hold-out {images}: expected fewer than the {len(dataset)} training images of {dataset.name}"
        )
    lot = draws.order(len(dataset), seed=derive(seed, "hold out"), epoch=0)
    kept = lot[images:].sort().values
    return dataset.take(kept), dataset.take(lot[:images].sort().values), kept
