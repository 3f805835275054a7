"""Scores of the three detectors on a classifier of one part of the images, block by block of those that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustfast.errors import UserError
from robustfast.evaluation import detectors
from robustfast.evaluation.cdvae.detection_samples import Samples, Triple
from robustfast.evaluation.detectors import (
    MAGNITUDES,
    NEIGHBOURS,
    Detector,
    KernelDensity,
    LocalIntrinsicDimensionality,
    Mahalanobis,
)
from robustfast.evaluation.detectors.parts import PartModel
from robustfast.evaluation.parts import PartContext
from robustfast.evaluation.picked import picked
from robustfast.evaluation.pieces import Pieces

__all__ = ["BLOCK", "DETECTORS", "Candidates", "PartDetectors", "beside", "layers_of", "scored"]

BLOCK = 100
"""Images that LID looks for neighbours among."""
DETECTORS = ("kd", "lid", "md")
"""Rows of tables 4 and 5: kernel density, local intrinsic dimensionality, Mahalanobis distance."""

_KINDS = ("clean", "noisy", "attacked")

Candidates = Mapping[float, detectors.Samples]
"""Setting of a detector to the scores under it."""


def layers_of(model: PartModel) -> tuple[str, ...] | None:
    """Where detectors look at a classifier: the `taps` of its encoder, as names in `model`; None where it has none."""
    encoder = model.classifier.encoder  # type: ignore[union-attr]
    taps = getattr(encoder, "taps", None)
    if taps is None:
        return None
    # The classifier may stand in the network that splits images too; a module has the first of its names.
    prefix = next(name for name, module in model.named_modules() if module is encoder)
    return tuple(f"{prefix}.{tap}" for tap in taps)


class _FitError(Exception):
    """The training images are none that a detector can be fitted to."""


class PartDetectors:
    """The detectors on one classifier, fitted to the training images when one of them is first needed.

    Args:
        context: of the part.
        model: the classifier, of images in [0, 1].
        names: of `DETECTORS`.
    """

    def __init__(self, context: PartContext, model: PartModel, names: Sequence[str] = DETECTORS) -> None:
        self.context, self.model, self.names = context, model, tuple(names)
        self.layers = layers_of(model)
        self._fitted: dict[str, Detector] = {}

    def fitted(self, name: str) -> Detector:
        """One of them."""
        if name not in self._fitted:
            self._fitted[name] = self._fit(name)
        return self._fitted[name]

    def settings(self, name: str, count: int) -> tuple[float, ...]:
        """What is chosen from where `count` images are scored; of KDE, whose bandwidth the training images choose,
        nothing."""
        if name == "kd":
            return ()
        if name == "md":
            return MAGNITUDES
        # One neighbour is left out of the block.
        return tuple(k for k in NEIGHBOURS if k < min(count, BLOCK))

    def bandwidth(self) -> float:
        """The one that the training images chose for the kernel density."""
        found = self.fitted("kd")
        assert isinstance(found, KernelDensity)
        return next(iter(found.chosen.values()))

    def of(self, name: str, images: Tensor, clean: Tensor, settings: Sequence[float]) -> Tensor:
        """Scores float64 [B, settings or 1, layers] of images made of `clean`, at most `BLOCK` of them."""
        found = self.fitted(name)
        if isinstance(found, LocalIntrinsicDimensionality):
            by_setting = found.sweep(images, [int(k) for k in settings], reference=clean)
        elif settings:
            by_setting = found.sweep(images, settings)
        else:
            return found.score(images)[:, None]
        return torch.stack(list(by_setting.values()), 1)

    def _fit(self, name: str) -> Detector:
        if name == "kd":
            # On what the last layer reads.
            found: Detector = KernelDensity(batch_size=BLOCK)
        elif name == "lid":
            found = LocalIntrinsicDimensionality(self.layers, batch_size=BLOCK)
        else:
            found = Mahalanobis(self.layers, batch_size=BLOCK)
        split = self.context.training_split
        with self.context.progress(len(split)) as bar:
            bar.say(f"{self.model.part}, fitting {name}")
            try:
                return found.fit(self.model, self.context.batches(split, bar=bar))
            except UserError as error:
                raise _FitError(str(error)) from error


def scored(
    kept: Pieces, fitted: PartDetectors, name: str, samples: Samples, *, work: str
) -> tuple[Candidates | None, str | None]:
    """Score the kept images of one attack by one detector.

    Kept block by block: an interruption loses one.

    Args:
        kept: where the blocks are kept.
        fitted: the detectors of the attacked classifier.
        name: of `DETECTORS`.
        samples: of the attack.
        work: what the bar says, and different for each of a part.

    Returns:
        Setting to scores, and None; or None and the reason why there are none.
    """
    count = len(samples.positions)
    if not count:
        return None, "no image was kept"
    settings = fitted.settings(name, count)
    if name == "lid" and not settings:
        return (
            None,
            f"{count} images were kept, {min(NEIGHBOURS) + 1} are needed for {min(NEIGHBOURS)} neighbours",
        )
    try:
        chosen = settings or (fitted.bandwidth(),)
        found = _blocks(kept, samples).of(
            work,
            _work(fitted, name, samples, settings),
            models=[fitted.model],
            layers=fitted.layers,
            settings=settings,
            level=samples.level,
            attack=samples.numbers["attack"],
            positions=samples.positions.tolist(),
        )
    except _FitError as error:
        return None, str(error)
    return {
        setting: detectors.Samples(
            *(found[kind][:, column].double() for kind in _KINDS), positions=samples.positions
        )
        for column, setting in enumerate(chosen)
    }, None


def beside(kept: Pieces, context: PartContext) -> Pieces:
    """Pieces of the work on another run or on other images, in the same folder and gone with it."""
    found = Pieces(context, "beside")
    found.partial = kept.partial
    return found


def _blocks(kept: Pieces, samples: Samples) -> Pieces:
    """The pieces of the kept images, `BLOCK` at a time."""
    context = kept.context
    request = replace(context.request, images=None, batch_size=BLOCK)
    split = context.split.take(samples.positions)
    return beside(kept, replace(context, split=split, request=request))


def _work(
    fitted: PartDetectors, name: str, samples: Samples, settings: Sequence[float]
) -> Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]:
    def score(x: Tensor, y: Tensor, numbers: Tensor) -> Mapping[str, Tensor]:
        triple = samples.triple(x, y, samples.positions.to(x.device)[numbers])
        # LID holds a last block that is short against the images before it too.
        earlier = _before(samples, int(numbers[0])) if name == "lid" and len(x) < BLOCK else None
        found = {}
        for kind in _KINDS:
            images, clean = getattr(triple, kind), triple.clean
            if earlier is not None:
                images = torch.cat([getattr(earlier, kind), images])
                clean = torch.cat([earlier.clean, clean])
            found[kind] = fitted.of(name, images, clean, settings)[-len(x) :]
        return found

    return score


def _before(samples: Samples, first: int) -> Triple | None:
    """The block of kept images before the one that begins at `first`; None where that is the first one."""
    if not first:
        return None
    own = samples.positions[first - BLOCK : first]
    x, y, positions = next(picked(_in_blocks(samples.context), own))
    return samples.triple(x, y, positions)


def _in_blocks(context: PartContext) -> PartContext:
    return replace(context, request=replace(context.request, batch_size=BLOCK))
