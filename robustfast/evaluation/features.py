"""Features of a network on clean and on attacked images, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from robustfast.attacks import eval_mode

__all__ = ["Features", "collect"]

Values = TypeVar("Values", Tensor, dict[str, Tensor])


@dataclass(frozen=True)
class Features(Generic[Values]):
    """What was collected of N images, on the CPU.

    Attributes:
        values: float32 [N, H], or by name such tensors where the feature function gave several.
        labels: the true classes, int64 [N].
        predicted: the classes that the model names, int64 [N]; None where no model was given.
        positions: of the images in their split, int64 [N]: what keyed the attack's draws.
    """

    values: Values
    labels: Tensor
    predicted: Tensor | None
    positions: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified rightly, a fraction.

        Raises:
            ValueError: collected without a model.
        """
        if self.predicted is None:
            raise ValueError("no predictions: these features were collected without a model")
        return (self.predicted == self.labels).double().mean().item()


def collect(
    feature: Callable[[Tensor], Values],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    attack: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    model: Callable[[Tensor], Tensor] | None = None,
) -> Features[Values]:
    """Features, and what the model predicts, of each image or of what an attack makes of it.

    The networks behind `feature` and `model` run in eval mode without gradients; every module gets its mode back, also
    after an exception. A network inside a lambda cannot be seen: give it as `model` too, or put it into eval mode.

    Args:
        feature: images [B, C, H, W] -> features [B, F], or several by name from one pass (such as
            ``lambda x: network.encode(x)``). Further dimensions stay.
        batches: (x float32 in [0, 1], y int64 [B], positions int64 [B], ...), at least one: what
            `robustfast.evaluation.parts.PartContext.batches` gives. They are read one at a time.
        attack: any attack of `robustfast.attacks`, called as ``attack(x, y, positions)``; None: the images themselves.
        model: what predicts: a network, one way of it, or any images -> logits [B, K].

    Returns:
        Everything in the order of `batches`, on the CPU.

    Raises:
        ValueError: no batch.
    """
    values: list[Any] = []
    labels, predicted, positions = [], [], []
    with ExitStack() as modes:
        for network in (feature, model):
            if network is not None:
                modes.enter_context(eval_mode(network))
        for x, y, index, *_ in batches:
            images = x if attack is None else attack(x, y, index)
            with torch.no_grad():
                values.append(_kept(feature(images)))
                if model is not None:
                    predicted.append(model(images).argmax(1).cpu())
            labels.append(y.cpu())
            positions.append(index.cpu())
    if not labels:
        raise ValueError("no batch: expected at least one to collect features of")
    return Features(
        _joined(values),
        torch.cat(labels),
        torch.cat(predicted) if model is not None else None,
        torch.cat(positions),
    )


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: part.float().cpu() for name, part in value.items()}
    return value.float().cpu()


def _joined(pieces: list[Any]) -> Any:
    if isinstance(pieces[0], dict):
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return torch.cat(pieces)
