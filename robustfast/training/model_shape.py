"""Whether a model takes the images of a run, asked before anything is written."""

from __future__ import annotations

import torch

from robustfast.attacks import eval_mode
from robustfast.data import Dataset
from robustfast.errors import UserError
from robustfast.models import Network
from robustfast.training.config import TrainConfig

__all__ = ["check_shape"]


def check_shape(model: Network, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
    """Send one black image through the model.

    Raises:
        UserError: its backbone takes images of another shape.
    """
    shape = (dataset.channels, dataset.height, dataset.width)
    try:
        with eval_mode(model), torch.no_grad():
            model(torch.zeros(1, *shape, device=device))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--model {config.model} does not fit the {'x'.join(map(str, shape))} images of {config.dataset}: {error}"
        ) from error
