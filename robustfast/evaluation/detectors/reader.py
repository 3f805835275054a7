"""Images to the vectors of some layers, through a model in eval mode that is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.modes import eval_mode
from robustfast.errors import UserError
from robustfast.evaluation.detectors.taps import INPUT, module_behind, pooled, taps

__all__ = ["Reader"]


class Reader:
    """Reads features [B, H] of layers, one pass for all of them.

    Args:
        model: a module or one way of a network; images, or what `transform` makes of them, to logits [B, C].
        layers: names of layers; see `robustfast.evaluation.detectors.taps`.
        transform: what the model is fed with in place of x; "x" is x itself.

    Attributes:
        device: where passes run: that of the model's first parameter or buffer.

    Raises:
        UserError: no such layer.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        layers: Sequence[str],
        transform: Callable[[Tensor], Tensor] | str,
    ) -> None:
        self.model, self.layers, self.transform = model, tuple(layers), transform
        with taps(model, layers):
            pass
        self.device = device_of(model)

    def feed(self, x: Tensor) -> Tensor:
        """What the model is fed with."""
        return fed(self.transform, x)

    def __call__(self, x: Tensor, *, gradient: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Features by layer, [B, H] each, and logits [B, C], of one batch on the model's device.

        Args:
            x: [B, ...].
            gradient: keep what a gradient with respect to x needs.

        Raises:
            UserError: a layer that does not run, or features that are not finite.
        """
        with eval_mode(self.model), _eval_mode(self.transform), torch.set_grad_enabled(gradient):
            with taps(self.model, self.layers) as found:
                logits = self.model(self.feed(x))
            for layer in self.layers:
                if layer not in found:
                    raise UserError(
                        f"layer {layer.removesuffix(INPUT)!r} does not run when the model is called: name one that does"
                    )
            return {layer: pooled(found[layer], layer) for layer in self.layers}, logits

    def all(self, x: Tensor, batch_size: int) -> tuple[dict[str, Tensor], Tensor]:
        """The same of any number of images, `batch_size` at a time: features, and the classes predicted, int64 [N]."""
        if not len(x):
            raise UserError("no image to score: expected one or more")
        values: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        predicted = []
        for images in x.split(batch_size):
            features, logits = self(images.to(self.device))
            for layer, value in features.items():
                values[layer].append(value)
            predicted.append(logits.argmax(1))
        return {layer: torch.cat(pieces) for layer, pieces in values.items()}, torch.cat(predicted)


def fed(transform: Callable[[Tensor], Tensor] | str, x: Tensor) -> Tensor:
    """x after `transform`.

    Raises:
        UserError: a word other than "x".
    """
    if isinstance(transform, str):
        if transform != "x":
            raise UserError(
                f'input {transform!r}: expected "x" or a function of images; see part_model for G(x)'
            )
        return x
    return transform(x)


def device_of(model: Callable[..., object]) -> torch.device:
    """Where the model's first parameter or buffer is; the CPU where it has none."""
    module = module_behind(model)
    for tensor in chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def first_of(batches: Iterator[Any]) -> Any:
    """The first batch.

    Raises:
        UserError: there is none.
    """
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            "no batch to fit on: expected a loader of (images, labels) with at least one"
        ) from None


def _eval_mode(transform: Callable[[Tensor], Tensor] | str) -> Any:
    # A word has no module; eval_mode leaves what has none alone.
    return eval_mode(transform)  # type: ignore[arg-type]
