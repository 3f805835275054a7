"""``robustbench.utils``: the accuracy on given images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from robustfast.attacks.compat.model import as_it_is, predictions, unsupported

__all__ = ["clean_accuracy", "load_model"]


def clean_accuracy(
    model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch_size: int = 100, device: Any = None
) -> float:
    """Share of images that the model is right about, in the mode it is in."""
    device = x.device if device is None else device
    with as_it_is(model) as held:
        right = sum(
            int((predictions(held, images.to(device)) == labels.to(device)).sum())
            for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True)
        )
    return right / len(x)


def load_model(*arguments: Any, **keywords: Any) -> NoReturn:
    """RobustBench's model zoo is not ours.

    Raises:
        AttributeError: always; keep robustbench for this one call, or load weights of your own.
    """
    raise unsupported(
        "robustbench", "load_model", "load weights of your own, or keep robustbench for this one call"
    )


def __getattr__(name: str) -> NoReturn:
    raise unsupported("robustbench.utils", name)
