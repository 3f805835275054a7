"""A part's work batch by batch, each kept on the disk until the part is done, so that an interrupted one goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import robustfast
from robustfast.errors import UserError
from robustfast.evaluation.model_digests import code_digest, weights_digest
from robustfast.evaluation.partial_results import PartialResults, data_digest, fingerprint
from robustfast.evaluation.parts import PartContext
from robustfast.evaluation.subject import Subject
from robustfast.evaluation.sweep_batches import BatchWork
from robustfast.evaluation.sweep_document import assemble
from robustfast.evaluation.sweep_settings import SweepAttack, SweepSettings
from robustfast.ops.backend import active_backend

__all__ = ["Pieces", "pieces"]

Work = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]


@contextmanager
def pieces(context: PartContext, part: str) -> Iterator[Pieces]:
    """The pieces of a part; they go when the block ends, and stay where it is interrupted or fails."""
    found = Pieces(context, part)
    yield found
    found.partial.clear()


class Pieces:
    """Results of images, kept batch by batch under what they were computed with.

    Args:
        context: of the part.
        part: its name, and what the folder of its pieces is called after.
    """

    def __init__(self, context: PartContext, part: str) -> None:
        self.context = context
        self.partial = PartialResults(context.folder / f"{context.protocol}-{part}.partial")

    def of(
        self, name: str, work: Work, *, models: Sequence[Callable[[Tensor], Tensor]] = (), **settings: Any
    ) -> dict[str, Tensor]:
        """What `work` says of every evaluated image.

        Args:
            name: of this work, different for each of a part.
            work: (x, y, positions in the split) of a batch -> values [B] by name: bool, integers or float32.
            models: besides the run's own, whose weights decide the result.
            settings: plain values that decide it.

        Returns:
            By name, [N] on the CPU, in the images' order.
        """
        key = fingerprint(
            work=name, settings=settings, models=[_digests(model) for model in models], **self._common
        )
        batches: list[Mapping[str, Any]] = []
        with self.context.progress(self.context.images) as bar:
            bar.say(name)
            for number, (x, y, positions) in enumerate(self.context.batches()):
                data = data_digest(x, y, positions)
                found = self.partial.find(key, number, data)
                if found is None:
                    found = {title: _values(name, value) for title, value in work(x, y, positions).items()}
                    self.partial.keep(key, number, data, found)
                    bar.advance(len(y))
                else:
                    bar.skip(len(y))
                batches.append(found)
        return {
            title: torch.tensor([value for batch in batches for value in batch[title]])
            for title in batches[0]
        }

    def swept(
        self,
        attacks: Sequence[SweepAttack],
        *,
        images: int | None = None,
        settings: SweepSettings | None = None,
        prepare: Callable[[Subject], Any] = lambda subject: None,
    ) -> dict[str, Any]:
        """The run under attacks at their radii, as `robustfast.evaluation.sweep` finds it, without a file.

        Args:
            attacks: each name once.
            images: fewer than all that are evaluated, spread evenly.
            settings: of all attacks; without them the defaults, with the request's seed.
            prepare: called with the subject, which is this sweep's own, before anything is done with it: to switch on
                what a network draws, say. What the network then answers tells its pieces from others.

        Returns:
            The document of a sweep.
        """
        context = self.context
        if images is not None:
            context = replace(context, request=replace(context.request, images=images))
        subject = context.subject()
        prepare(subject)
        settings = settings or SweepSettings(seed=context.request.seed)
        work = BatchWork(subject, attacks, settings, weights_digest(subject.model), self.partial)
        source = subject.source
        with context.progress(subject.images * len(work.cells)) as bar:
            batches = [
                work.batch(number, x, y, index, bar)
                for number, (x, y, index, *_) in enumerate(source.batches(0))
            ]
        source.close()
        header = {"images": subject.images, "eot": settings.eot, "minimal": settings.minimal}
        return assemble(header, work.swept(), batches, probe_eps=work.probe_eps)

    @cached_property
    def _common(self) -> dict[str, Any]:
        context = self.context
        return {
            "version": robustfast.__version__,
            "model": _digests(context.run.model),
            "images": [context.images, len(context.split), context.batch_size],
            "device": context.device.type,
            "backend": active_backend(),
            "torch": torch.__version__,
            "seed": context.request.seed,
        }


def _values(name: str, value: Tensor) -> list[Any]:
    if value.is_floating_point() and not value.isfinite().all():
        raise UserError(f"{name}: a network says nan or infinity of some image; evaluate another checkpoint")
    return value.tolist()


def _digests(model: Callable[[Tensor], Tensor]) -> list[str]:
    return [weights_digest(model), code_digest(model)]
