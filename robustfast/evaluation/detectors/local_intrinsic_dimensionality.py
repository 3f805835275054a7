"""Local intrinsic dimensionality: around adversarial images, clean ones seem to fill a space of more dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation.detectors.detector import CHUNK_BYTES, Detector
from robustfast.evaluation.detectors.distances import nearest

__all__ = ["NEIGHBOURS", "LocalIntrinsicDimensionality", "lid_estimates"]

NEIGHBOURS = tuple(range(10, 100, 10))
"""Numbers of neighbours k that a protocol chooses from (Lee et al. 2018; batches of 100)."""


class LocalIntrinsicDimensionality(Detector):
    """-LID of each layer, the maximum-likelihood estimate from distances to clean activations (Ma et al. 2018).

    It reads no labels: those of the loader that `fit` gets may be anything.

    Which clean images the distances are taken to:

    - ``score(x, reference=clean)``, the paper's protocol: `clean` are the images that `x` were made of (or x itself),
      one for each. Both are cut into blocks of `batch_size`; a query is held against the clean activations of its own
      block, and the smallest distance is left out. For clean x that is the query itself; for any other x it is the
      nearest clean image, often the one it was made of, which the protocol leaves out all the same. A last block that
      is shorter is held against the last `batch_size` clean images, its own among them, so that no image is dropped.
    - ``score(x)``: all x against one reference, whose activations `fit` took from the first `reference_size` images of
      its loader, or `refer` from images of the user's. Nothing is left out: the queries are not among them.

    Args:
        layers, input, chunk_bytes: as of `Detector`.
        k: neighbours, 2 or more.
        batch_size: images of one block, and of one pass.
        reference_size: clean images that `fit` keeps; None: all of the loader.

    Raises:
        UserError: k below 2, or too large for the images that it is counted among.
    """

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        k: int = 20,
        input: Callable[[Tensor], Tensor] | str = "x",
        batch_size: int = 100,
        reference_size: int | None = 100,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__(layers, input=input, batch_size=batch_size, chunk_bytes=chunk_bytes)
        _check(k)
        self.k, self.reference_size = k, reference_size
        self._reference: dict[str, Tensor] = {}

    def refer(self, clean: Tensor) -> LocalIntrinsicDimensionality:
        """Take the activations of these images as the reference of ``score(x)``; returns itself."""
        self._reference, _ = self._fitted().all(clean, self.batch_size)
        return self

    def score(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """-LID, float64 [N, layers] on the CPU; higher is cleaner.

        Args:
            x: any number of images.
            reference: the clean images that x were made of, as many; None: what `fit` or `refer` took.

        Raises:
            UserError: not fitted, another number of clean images, k too large, or features that are not finite.
        """
        return self.sweep(x, (self.k,), reference)[self.k]

    def sweep(  # type: ignore[override]
        self, x: Tensor, settings: Iterable[int], reference: Tensor | None = None
    ) -> dict[int, Tensor]:
        """`score` with each of some k, from the same distances."""
        settings = tuple(settings)
        for k in settings:
            _check(k)
        reader = self._fitted()
        if reference is None:
            blocks = [(slice(0, len(x)), self._reference)]
        elif len(reference) != len(x):
            raise UserError(
                f"{len(reference)} clean images as the reference of {len(x)}: expected one for each, or refer(clean) "
                "before score(x)"
            )
        else:
            clean, _ = reader.all(reference, self.batch_size)
            blocks = list(_blocks(clean, self.batch_size))
        features, _ = reader.all(x, self.batch_size)
        found = {k: torch.empty(len(x), len(features), dtype=torch.float64) for k in settings}
        for own, samples in blocks:
            for column, (layer, value) in enumerate(features.items()):
                lids = lid_estimates(
                    value[own],
                    samples[layer],
                    settings,
                    leave_out_nearest=reference is not None,
                    chunk_bytes=self.chunk_bytes,
                )
                for k, lid in lids.items():
                    found[k][own, column] = -lid.cpu()
        return found

    def _begin(self) -> None:
        self._pieces: list[dict[str, Tensor]] = []
        self._seen = 0

    def _take(self, features: dict[str, Tensor], logits: Tensor, y: Tensor) -> bool:
        room = len(y) if self.reference_size is None else self.reference_size - self._seen
        self._pieces.append({layer: value[:room].clone() for layer, value in features.items()})
        self._seen += min(len(y), room)
        return self.reference_size is None or self._seen < self.reference_size

    def _finish(self) -> None:
        self._reference = {}
        for layer in self.layers or ():
            self._reference[layer] = torch.cat([piece.pop(layer) for piece in self._pieces])
        del self._pieces
        if self.k > self._seen:
            raise UserError(f"k {self.k}: expected at most {self._seen}, the images that the reference has")

    def _state(self) -> dict[str, Any]:
        return {"reference": self._reference}

    def _restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._reference = {layer: value.to(device) for layer, value in state["reference"].items()}


def lid_estimates(
    queries: Tensor,
    samples: Tensor,
    ks: Iterable[int],
    *,
    leave_out_nearest: bool,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[int, Tensor]:
    """``-k / sum_{i <= k} log(r_i / r_k)`` with the ascending distances r_i of each query to the samples.

    Distances of 0 say nothing of a dimension: they leave the sum, and its k counts the others. A query with no other
    neighbour has dimension 0. Where all remaining distances are equal, the estimate has no upper bound, and the number
    of features H stands for it.

    Args:
        queries: [N, H].
        samples: [M, H].
        ks: numbers of neighbours, 2 or more.
        leave_out_nearest: drop the smallest distance before the k are counted (the query itself, in the protocol of Ma
            et al.).
        chunk_bytes: memory for tiles of distances.

    Returns:
        k to LID, float64 [N].

    Raises:
        UserError: fewer samples than k, with the one left out.
    """
    ks = tuple(ks)
    most = len(samples) - leave_out_nearest
    if max(ks) > most:
        among = "with the nearest left out" if leave_out_nearest else "none left out"
        raise UserError(
            f"k {max(ks)}: expected at most {most}, the reference has {len(samples)} images, {among}"
        )
    distances = nearest(queries, samples, max(ks) + leave_out_nearest, chunk_bytes=chunk_bytes)
    distances = distances[:, int(leave_out_nearest) :]
    found = {}
    for k in ks:
        near = distances[:, :k]
        apart = near > 0
        # log(1) = 0 stands for the neighbours at distance 0.
        ratios = torch.where(apart, near / near[:, -1:], 1.0)
        total, count = -ratios.log().sum(1), apart.sum(1)
        estimate = torch.where(total > 0, count / total, float(queries.shape[1]))
        found[k] = torch.where(count > 0, estimate, 0.0)
    return found


def _blocks(clean: dict[str, Tensor], size: int) -> Iterable[tuple[slice, dict[str, Tensor]]]:
    """Positions of each block and the activations that it is held against."""
    count = len(next(iter(clean.values())))
    for start in range(0, count, size):
        stop = min(start + size, count)
        first = max(0, stop - size)
        yield slice(start, stop), {layer: value[first:stop] for layer, value in clean.items()}


def _check(k: int) -> None:
    if k < 2:
        raise UserError(f"k {k}: expected 2 or more neighbours, of one the estimate has no bound")
