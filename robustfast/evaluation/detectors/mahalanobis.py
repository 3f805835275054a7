"""Mahalanobis distance: adversarial images lie far from every class's mean, measured by the spread within classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors.detector import CHUNK_BYTES, Detector, check_classes, class_counts

__all__ = ["MAGNITUDES", "Mahalanobis"]

MAGNITUDES = (0.0, 0.01, 0.005, 0.002, 0.0014, 0.001, 0.0005)
"""Magnitudes m that a protocol chooses from (Lee et al. 2018)."""


class Mahalanobis(Detector):
    """max over classes c of ``-1/2 (f - mu_c)^T P (f - mu_c)`` in each layer (Lee et al. 2018).

    mu_c are the class means, P is the pseudo-inverse of the covariance of the features about the means of their
    classes, one for all classes: sums over all samples in float64, about a point near the data, in one pass.

    With a magnitude m, a layer's features are those of the image after one step towards its best class c*:
    ``x - m sign(grad_x d_c*)``, d the distance, scored anew by the best of all classes; not clipped. For images in
    [0, 1] that is the step of Lee et al., who write ``m sign(grad) / std`` of normalised images; where x are
    normalised, give `std`. Where the model is fed with x - G(x), the gradient goes through it.

    Args:
        layers, input, batch_size, chunk_bytes: as of `Detector`; no pairwise distances here, so no chunks.
        magnitude: m, 0 or more.
        std: of the channels, where the images given are normalised by it; None for images in [0, 1].

    Attributes:
        means: layer to class means, float64 [C, H].
        precisions: layer to P, float64 [H, H].

    Raises:
        UserError: a negative magnitude, a std that is not above 0; from `fit`, a class of the logits without samples.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        magnitude: float = 0.0,
        std: Sequence[float] | None = None,
        input: Callable[[Tensor], Tensor] | str = "x",
        batch_size: int = 100,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__(layers, input=input, batch_size=batch_size, chunk_bytes=chunk_bytes)
        _check(magnitude)
        if std is not None and not all(value > 0 for value in std):
            raise UserError(f"std {tuple(std)}: expected numbers above 0, one for each channel")
        self.magnitude, self.std = magnitude, std
        self.means: dict[str, Tensor] = {}
        self.precisions: dict[str, Tensor] = {}

    def score(self, x: Tensor) -> Tensor:
        return self.sweep(x, (self.magnitude,))[self.magnitude]

    def sweep(self, x: Tensor, settings: Iterable[float]) -> dict[float, Tensor]:
        """`score` with each of some magnitudes, from the same gradients."""
        settings = tuple(settings)
        for magnitude in settings:
            _check(magnitude)
        reader = self._fitted()
        if not len(x):
            raise UserError("no image to score: expected one or more")
        found: dict[float, list[Tensor]] = {magnitude: [] for magnitude in settings}
        for images in x.split(self.batch_size):
            for magnitude, scores in self._batch(images.to(reader.device), settings).items():
                found[magnitude].append(scores)
        return {magnitude: torch.cat(pieces).cpu() for magnitude, pieces in found.items()}

    def _batch(self, x: Tensor, settings: Sequence[float]) -> dict[float, Tensor]:
        reader = self._fitted()
        steps = any(settings)
        images = x.detach().requires_grad_(steps)
        features, _ = reader(images, gradient=steps)
        found = {
            magnitude: torch.empty(len(x), len(features), dtype=torch.float64, device=x.device)
            for magnitude in settings
        }
        for column, (layer, value) in enumerate(features.items()):
            with torch.set_grad_enabled(steps):
                best = self._score(value, layer)
            direction = self._direction(best, images) if steps else None
            for magnitude in settings:
                if magnitude:
                    moved, _ = reader(x - magnitude * direction)
                    with torch.no_grad():
                        found[magnitude][:, column] = self._score(moved[layer], layer)
                else:
                    found[magnitude][:, column] = best.detach()
        return found

    def _direction(self, best: Tensor, images: Tensor) -> Tensor:
        """The sign of the gradient of the best class's distance, divided by the channels' std."""
        (gradient,) = torch.autograd.grad(-best.sum(), images, retain_graph=True)
        direction = gradient.sign()
        if self.std is None:
            return direction
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device)
        return direction / std.reshape(-1, *[1] * (images.dim() - 2))

    def _score(self, features: Tensor, layer: str) -> Tensor:
        """float64 [B]."""
        spread = self._spread[layer]
        apart = (features.double() - self._origin[layer]) @ spread
        means = self._white[layer]
        products = apart @ means.T
        squares = apart.square().sum(1, keepdim=True) + means.square().sum(1) - 2 * products
        return -0.5 * squares.clamp(min=0).min(1).values

    def _begin(self) -> None:
        self._origin: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}
        self._counts: Tensor | None = None

    def _take(self, features: dict[str, Tensor], logits: Tensor, y: Tensor) -> bool:
        classes = logits.shape[1]
        counts = class_counts(y, classes)
        self._counts = counts if self._counts is None else self._counts + counts
        for layer, value in features.items():
            value = value.double()
            if layer not in self._origin:
                self._origin[layer] = value.mean(0)
                self._sums[layer] = value.new_zeros(classes, value.shape[1])
                self._products[layer] = value.new_zeros(value.shape[1], value.shape[1])
            value = value - self._origin[layer]
            self._sums[layer].index_add_(0, y, value)
            self._products[layer].addmm_(value.T, value)
        return True

    def _finish(self) -> None:
        assert self._counts is not None
        check_classes(self._counts)
        self.means, self.precisions = {}, {}
        for layer in list(self._sums):
            sums, products = self._sums.pop(layer), self._products.pop(layer)
            means = sums / self._counts[:, None]
            # About the means of the classes: sum f f^T - sum_c n_c mu_c mu_c^T.
            within = (products - means.T @ sums) / self._counts.sum()
            self.precisions[layer] = torch.linalg.pinv((within + within.T) / 2, hermitian=True)
            self.means[layer] = means + self._origin[layer]
        self._whiten()

    def _whiten(self) -> None:
        """A root of each P, and the means in its coordinates about their own mean."""
        self._origin, self._spread, self._white = {}, {}, {}
        for layer, precision in self.precisions.items():
            values, vectors = torch.linalg.eigh(precision)
            self._spread[layer] = vectors * values.clamp(min=0).sqrt()
            self._origin[layer] = self.means[layer].mean(0)
            self._white[layer] = (self.means[layer] - self._origin[layer]) @ self._spread[layer]

    def _state(self) -> dict[str, Any]:
        return {"means": self.means, "precisions": self.precisions}

    def _restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.means = {layer: value.to(device) for layer, value in state["means"].items()}
        self.precisions = {layer: value.to(device) for layer, value in state["precisions"].items()}
        self._whiten()


def _check(magnitude: float) -> None:
    if not magnitude >= 0:
        raise UserError(f"magnitude {magnitude}: expected 0 or more, such as 0.001")
