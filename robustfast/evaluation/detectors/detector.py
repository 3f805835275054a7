"""What all detectors share: layers, input, batches, and what is wrong before they are fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from robustfast.attacks.modes import eval_mode
from robustfast.errors import UserError
from robustfast.evaluation.detectors.reader import Reader, device_of, fed, first_of
from robustfast.evaluation.detectors.taps import stages

__all__ = ["CHUNK_BYTES", "Detector"]

CHUNK_BYTES = 64 * 2**20
"""Bytes that pairwise distances and their intermediate values may take at a time."""

Model = Callable[[Tensor], Tensor]
Self = TypeVar("Self", bound="Detector")


class Detector(ABC):
    """Scores of images that are high for clean ones and low for adversarial ones, one for each layer looked at.

    Passes run in eval mode; modes, buffers and gradients of the model stay as they are. Spatial features are averaged
    to vectors. Features are float32 (float64 of a float64 model); distances, sums and scores float64.

    Args:
        layers: a name or several of `torch.nn.Module.named_modules` of the model, with ``:input`` behind it what goes
            into that layer; None: what the class's `default_layers` finds.
        input: what the model is fed with in place of the images: a function of them, or "x", the images themselves. A
            module (such as `part_input` gives) is put into eval mode; a lambda's network is not seen.
        batch_size: images of one pass.
        chunk_bytes: memory that pairwise distances may take at a time; see `CHUNK_BYTES`.

    Attributes:
        layers: the names; those found, once fitted.

    Raises:
        UserError: `batch_size` or `chunk_bytes` no whole number or below 1, or layers that are no names.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        input: Model | str = "x",
        batch_size: int = 100,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("chunk_bytes", chunk_bytes)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} {value}: expected a whole number, 1 or more")
        self.layers = _names(layers)
        self.input, self.batch_size, self.chunk_bytes = input, batch_size, chunk_bytes
        self._named = self.layers
        self._reader: Reader | None = None

    def default_layers(self, model: Model, x: Tensor) -> tuple[str, ...]:
        """The layers that are looked at where none are named, found by a pass of `x`, the model's own input."""
        return stages(model, x)

    def fit(self: Self, model: Model, loader: Iterable[Any]) -> Self:
        """Learn what clean images look like, in one pass over `loader`.

        Args:
            model: a torch module, or one way of a network (`network.way("n")`): images, or what `input` makes of them,
                to logits [B, C].
            loader: batches (x, y, ...): clean training images and their classes, int64 [B]. Not augmented.

        Raises:
            UserError: no batch, a layer that does not exist or does not run, features that are not finite; and what the
                detector itself says.
        """
        self._reader = None
        batches = iter(loader)
        first = first_of(batches)
        with torch.no_grad():
            self.layers = self._defaults(model, first[0]) if self._named is None else self._named
        reader = Reader(model, self.layers, self.input)
        self._begin()
        for x, y, *_ in chain([first], batches):
            features, logits = reader(x.to(reader.device))
            if not self._take(features, logits, y.to(reader.device)):
                break
        self._finish()
        self._reader = reader
        return self

    def _defaults(self, model: Model, x: Tensor) -> tuple[str, ...]:
        x = x[:1].to(device_of(model))
        with eval_mode(self.input):  # type: ignore[arg-type]
            return self.default_layers(model, fed(self.input, x))

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """How clean images look: float64 [N, layers] on the CPU, in the order of `layers`; higher is cleaner.

        Args:
            x: any number of images, passed `batch_size` at a time.

        Raises:
            UserError: not fitted, no image, or features that are not finite.
        """

    @abstractmethod
    def sweep(self, x: Tensor, settings: Iterable[float]) -> dict[float, Tensor]:
        """`score` under several values of the detector's own parameter, from the same passes as far as they go."""

    def state_dict(self) -> dict[str, Any]:
        """What was fitted: tensors, numbers and names that `torch.save` writes and `weights_only=True` reads back.

        Raises:
            UserError: not fitted.
        """
        self._fitted()
        return {"detector": type(self).__name__, "layers": list(self.layers or ()), "state": self._state()}

    def load_state_dict(self: Self, state: Mapping[str, Any], model: Model) -> Self:
        """Take what another detector of this class was fitted to, and the model that it was fitted with.

        Raises:
            UserError: the state of another detector, or a layer that the model does not have.
        """
        if state.get("detector") != type(self).__name__:
            raise UserError(
                f"the state is one of {state.get('detector')}: expected one that {type(self).__name__} wrote"
            )
        self.layers = tuple(state["layers"])
        reader = Reader(model, self.layers, self.input)
        self._restore(state["state"], reader.device)
        self._reader = reader
        return self

    def _fitted(self) -> Reader:
        if self._reader is None:
            raise UserError(
                f"{type(self).__name__} scores before it is fitted: call fit(model, loader) first"
            )
        return self._reader

    @abstractmethod
    def _begin(self) -> None:
        """Forget."""

    @abstractmethod
    def _take(self, features: dict[str, Tensor], logits: Tensor, y: Tensor) -> bool:
        """One batch to fit on; whether more are wanted."""

    @abstractmethod
    def _finish(self) -> None:
        """Make what was taken into what scores."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What `_restore` takes: plain values and tensors."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `_state`, on the device of the model."""


def _names(layers: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if layers is None or isinstance(layers, str):
        return layers if layers is None else (layers,)
    if not isinstance(layers, Sequence) or not all(isinstance(name, str) for name in layers):
        raise UserError(f"layers {layers!r}: expected a name of the model's named_modules, or several")
    return tuple(layers)


def check_classes(counts: Tensor, least: int = 1) -> None:
    """Refuse classes without samples.

    Args:
        counts: samples by class, int64 [C].
        least: how many each needs.

    Raises:
        UserError: names the first class that has fewer.
    """
    short = (counts < least).nonzero().flatten().tolist()
    if short:
        raise UserError(
            f"class {short[0]} has {int(counts[short[0]])} samples, too few as {len(short)} of {len(counts)} classes "
            f"have: expected {least} or more of each class in the loader"
        )


def class_counts(y: Tensor, classes: int) -> Tensor:
    """Samples by class, int64 [C].

    Raises:
        UserError: labels that are no integers, or one outside 0 .. C - 1.
    """
    if y.is_floating_point() or y.is_complex() or y.dim() != 1:
        raise UserError(f"labels {tuple(y.shape)} of {y.dtype}: expected classes, int64 [B]")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(
            f"labels from {int(y.min())} to {int(y.max())}: expected 0 to {classes - 1}, the classes of the model"
        )
    return torch.bincount(y, minlength=classes)
