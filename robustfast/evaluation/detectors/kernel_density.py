"""Kernel density: adversarial images lie where few training images of the class lie that they are taken for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors.detector import CHUNK_BYTES, Detector, check_classes, class_counts
from robustfast.evaluation.detectors.distances import log_kernel_sums
from robustfast.evaluation.detectors.taps import penultimate

__all__ = ["BANDWIDTHS", "KernelDensity"]

BANDWIDTHS = tuple(float(10 ** (step / 10)) for step in range(-10, 11))
"""0.1 to 10, ten to the decade: what a bandwidth is chosen from."""

HELD_OUT = 5
"""Every fifth sample of a class is held out while a bandwidth is chosen."""


class KernelDensity(Detector):
    """log p(f | c) under a Gaussian kernel density estimate, c the class that the model predicts (Feinman et al. 2017).

    ``p(f | c) = mean_i N(f; f_i, h^2 I)`` over the training samples i of class c. By default f is what the last linear
    layer reads.

    Without a bandwidth, each layer gets the one of `bandwidths` under which every fifth sample of each class (in the
    loader's order) is likeliest by the other four fifths, by the mean over samples of log p(f | own class); the density
    itself then takes all samples.

    Args:
        layers, input, batch_size, chunk_bytes: as of `Detector`.
        bandwidth: h, above 0; None chooses.
        bandwidths: what it is chosen from.

    Attributes:
        chosen: layer to its bandwidth h, once fitted.
        likelihoods: layer to the mean held-out log-likelihood of each of `bandwidths`, where it was chosen.

    Raises:
        UserError: a bandwidth of 0 or less; from `fit`, a class of the logits without samples (where a bandwidth is
            chosen, with fewer than two).
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        bandwidth: float | None = None,
        bandwidths: Sequence[float] = BANDWIDTHS,
        input: Callable[[Tensor], Tensor] | str = "x",
        batch_size: int = 100,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__(layers, input=input, batch_size=batch_size, chunk_bytes=chunk_bytes)
        _check(bandwidths if bandwidth is None else (bandwidth,))
        self.bandwidth, self.bandwidths = bandwidth, tuple(bandwidths)
        self.chosen: dict[str, float] = {}
        self.likelihoods: dict[str, list[float]] = {}
        self._samples: dict[str, list[Tensor]] = {}

    def default_layers(self, model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[str, ...]:
        return penultimate(model, x)

    def score(self, x: Tensor) -> Tensor:
        features, predicted = self._fitted().all(x, self.batch_size)
        return torch.stack(
            [
                self._log_density(value, predicted, layer, (self.chosen[layer],))[0]
                for layer, value in features.items()
            ],
            1,
        ).cpu()

    def sweep(self, x: Tensor, settings: Iterable[float]) -> dict[float, Tensor]:
        """`score` with each of some bandwidths, the same in every layer."""
        settings = tuple(settings)
        _check(settings)
        features, predicted = self._fitted().all(x, self.batch_size)
        found = [self._log_density(value, predicted, layer, settings) for layer, value in features.items()]
        return dict(zip(settings, torch.stack(found, 2).cpu(), strict=True))

    def _log_density(
        self, features: Tensor, classes: Tensor, layer: str, bandwidths: Sequence[float]
    ) -> Tensor:
        """float64 [len(bandwidths), N]: of each sample under the density of its class."""
        found = torch.empty(len(bandwidths), len(features), dtype=torch.float64, device=features.device)
        for number, samples in enumerate(self._samples[layer]):
            own = (classes == number).nonzero().flatten()
            if len(own):
                found[:, own] = log_densities(
                    features[own], samples, bandwidths, chunk_bytes=self.chunk_bytes
                )
        return found

    def _begin(self) -> None:
        self._classes = 0
        self._pieces: dict[str, list[Tensor]] = {layer: [] for layer in self.layers or ()}
        self._labels: list[Tensor] = []

    def _take(self, features: dict[str, Tensor], logits: Tensor, y: Tensor) -> bool:
        self._classes = logits.shape[1]
        for layer, value in features.items():
            # A copy: a layer's input may be a view of the caller's images.
            self._pieces[layer].append(value.clone())
        self._labels.append(y)
        return True

    def _finish(self) -> None:
        y = torch.cat(self._labels)
        check_classes(class_counts(y, self._classes), least=2 if self.bandwidth is None else 1)
        self.chosen, self.likelihoods, self._samples = {}, {}, {}
        for layer in list(self._pieces):
            self._samples[layer] = _by_class(self._pieces.pop(layer), self._labels, self._classes)
            if self.bandwidth is None:
                self.likelihoods[layer] = self._held_out(self._samples[layer])
                best = max(range(len(self.bandwidths)), key=self.likelihoods[layer].__getitem__)
                self.chosen[layer] = self.bandwidths[best]
            else:
                self.chosen[layer] = self.bandwidth
        del self._labels, self._pieces

    def _held_out(self, samples: list[Tensor]) -> list[float]:
        """Mean over held-out samples of their log density, for each bandwidth."""
        total = torch.zeros(len(self.bandwidths), dtype=torch.float64, device=samples[0].device)
        count = 0
        for own in samples:
            held = torch.arange(len(own), device=own.device) % HELD_OUT == 0
            total += log_densities(own[held], own[~held], self.bandwidths, chunk_bytes=self.chunk_bytes).sum(
                1
            )
            count += int(held.sum())
        return (total / count).tolist()

    def _state(self) -> dict[str, Any]:
        return {"samples": self._samples, "bandwidth": self.chosen}

    def _restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.chosen, self.likelihoods = dict(state["bandwidth"]), {}
        self._samples = {
            layer: [part.to(device) for part in parts] for layer, parts in state["samples"].items()
        }


def log_densities(
    queries: Tensor, samples: Tensor, bandwidths: Sequence[float], *, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """log of ``mean_i N(q; s_i, h^2 I)`` for each bandwidth h and query q: float64 [len(bandwidths), N].

    Args:
        queries: [N, H].
        samples: [M, H].
        bandwidths: above 0.
        chunk_bytes: memory for the tiles of distances.
    """
    sums = log_kernel_sums(queries, samples, bandwidths, chunk_bytes=chunk_bytes)
    H = samples.shape[1]
    constants = [-math.log(len(samples)) - H / 2 * math.log(2 * math.pi * h * h) for h in bandwidths]
    return sums + torch.tensor(constants, dtype=torch.float64, device=sums.device)[:, None]


def _by_class(pieces: list[Tensor], labels: list[Tensor], classes: int) -> list[Tensor]:
    """The samples of each class in one tensor. Empties `pieces`: for a moment, the features exist twice."""
    split: list[list[Tensor]] = [[] for _ in range(classes)]
    for y in labels:
        value = pieces.pop(0)
        for number in y.unique().tolist():
            split[number].append(value[y == number])
    found = []
    for number in range(classes):
        found.append(torch.cat(split[number]))
        split[number] = []
    return found


def _check(bandwidths: Sequence[float]) -> None:
    for value in bandwidths:
        if not 0 < value < math.inf:
            raise UserError(f"bandwidth {value}: expected a finite number above 0, such as one of 0.1 to 10")
    if not len(bandwidths):
        raise UserError("no bandwidth: expected one or more to choose from")
