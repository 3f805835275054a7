"""How attacks of Foolbox are called: one epsilon or several, raw and clipped images and who was fooled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.compat.foolbox.criteria import (
    Criterion,
    Misclassification,
    TargetedMisclassification,
    get_criterion,
)
from robustfast.attacks.compat.foolbox.distances import Distance
from robustfast.attacks.compat.foolbox.eager import unwrap
from robustfast.attacks.compat.foolbox.models import Model
from robustfast.attacks.compat.model import as_it_is

__all__ = ["Attack", "FixedEpsilonAttack", "MinimizationAttack", "Repeated", "goal", "verify_input_bounds"]


class Attack:
    """``attack(fmodel, inputs, labels_or_criterion, epsilons=...) -> raw, clipped, success``.

    With a list of epsilons the first two are lists and success is bool [K, B]; with one number, tensors and bool [B].
    Inputs may be tensors of eagerpy; then so are the results. Inputs outside the model's bounds fail an assertion.
    """

    distance: Distance

    def __call__(self, model: Model, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any) -> Any:
        x, restore = unwrap(inputs)
        verify_input_bounds(x, model)
        several = isinstance(epsilons, Iterable)
        with as_it_is(model.through):
            raw, clipped, success = self._all(
                model, x, get_criterion(criterion), list(epsilons) if several else [epsilons], **kwargs
            )
        raw, clipped, success = map(restore, raw), map(restore, clipped), torch.stack(success)
        if several:
            return list(raw), list(clipped), restore(success)
        return next(raw), next(clipped), restore(success[0])

    def _all(
        self, model: Model, x: Tensor, criterion: Criterion, epsilons: list[float | None], **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        raise NotImplementedError

    def repeat(self, times: int) -> Repeated:
        """The best of `times` runs."""
        return Repeated(self, times)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{name.strip('_')}={value}" for name, value in vars(self).items() if name != "_built"
        )
        return f"{type(self).__name__}({settings})"


class FixedEpsilonAttack(Attack):
    """One run for each epsilon; a subclass gives `run`."""

    def run(self, model: Model, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _all(
        self, model: Model, x: Tensor, criterion: Criterion, epsilons: list[float | None], **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        if None in epsilons:
            raise NotImplementedError("FixedEpsilonAttack subclasses do not yet support None in epsilons")
        raw = [self.run(model, x, criterion, epsilon=epsilon, **kwargs) for epsilon in epsilons]
        clipped = [
            self.distance.clip_perturbation(x, found, epsilon)
            for found, epsilon in zip(raw, epsilons, strict=True)
        ]
        return raw, clipped, [criterion(images, model(images)) for images in clipped]


class MinimizationAttack(Attack):
    """One run for all epsilons, clipped to each; None leaves it as it is. A subclass gives `run`."""

    def run(
        self, model: Model, inputs: Any, criterion: Any, *, early_stop: float | None = None, **kwargs: Any
    ) -> Any:
        raise NotImplementedError

    def _all(
        self, model: Model, x: Tensor, criterion: Criterion, epsilons: list[float | None], **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        early_stop = None if None in epsilons else min(epsilons)
        raw = self.run(model, x, criterion, early_stop=early_stop, **kwargs)
        clipped = [
            raw if epsilon is None else self.distance.clip_perturbation(x, raw, epsilon)
            for epsilon in epsilons
        ]
        return [raw] * len(epsilons), clipped, [criterion(images, model(images)) for images in clipped]


class Repeated(Attack):
    """Runs an attack several times: each sample keeps the first that succeeds, without a limit the nearest."""

    def __init__(self, attack: Attack, times: int) -> None:
        if times < 1:
            raise ValueError(f"expected times >= 1, got {times}")
        self.attack = attack
        self.times = times

    @property
    def distance(self) -> Distance:
        return self.attack.distance

    def repeat(self, times: int) -> Repeated:
        return Repeated(self.attack, self.times * times)

    def _all(
        self, model: Model, x: Tensor, criterion: Criterion, epsilons: list[float | None], **kwargs: Any
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        best = None
        for _ in range(self.times):
            found = [list(part) for part in self.attack._all(model, x, criterion, epsilons, **kwargs)]
            if best is None:
                best = found
                continue
            for k, epsilon in enumerate(epsilons):
                better = ~best[2][k]
                if epsilon is None:
                    better |= self.distance(x, found[0][k]) < self.distance(x, best[0][k])
                better &= found[2][k]
                rows = better.reshape(-1, *[1] * (x.dim() - 1))
                for images, others in zip(best[:2], found[:2], strict=True):
                    images[k] = torch.where(rows, others[k], images[k])
                best[2][k] = best[2][k] | found[2][k]
        return tuple(best)


def verify_input_bounds(x: Tensor, model: Model) -> None:
    """Fail an assertion where pixels lie outside the model's bounds, as Foolbox does."""
    assert x.min().item() >= model.bounds.lower
    assert x.max().item() <= model.bounds.upper


def goal(criterion: Criterion, batch: int) -> tuple[Tensor, bool]:
    """Labels int64 [B], and whether they are wanted.

    Raises:
        ValueError: another criterion than the two, or labels of another shape.
    """
    if isinstance(criterion, Misclassification):
        name, classes, targeted = "labels", criterion.labels, False
    elif isinstance(criterion, TargetedMisclassification) or hasattr(criterion, "target_classes"):
        name, classes, targeted = "target_classes", criterion.target_classes, True
    else:
        raise ValueError("unsupported criterion")
    if classes.shape != (batch,):
        raise ValueError(f"expected {name} to have shape ({batch},), got {tuple(classes.shape)}")
    return classes, targeted
