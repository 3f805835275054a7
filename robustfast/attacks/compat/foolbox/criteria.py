"""Foolbox's criteria: what counts as adversarial."""

from __future__ import annotations

from typing import Any

from robustfast.attacks.compat.foolbox.eager import unwrap

__all__ = ["Criterion", "Misclassification", "TargetedMisclassification", "get_criterion"]


class Criterion:
    """Base class of criteria of your own: ``__call__(perturbed, outputs) -> bool [B]``; ``a & b`` asks for both."""

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        raise NotImplementedError

    def __and__(self, other: Criterion) -> Criterion:
        return _Both(self, other)


class _Both(Criterion):
    def __init__(self, a: Criterion, b: Criterion) -> None:
        self.a, self.b = a, b

    def __repr__(self) -> str:
        return f"{self.a!r} & {self.b!r}"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        raw, restore = unwrap(outputs)
        images, _ = unwrap(perturbed)
        return restore(unwrap(self.a(images, raw))[0] & unwrap(self.b(images, raw))[0])


class Misclassification(Criterion):
    """Another class than `labels` int64 [B] has the largest output."""

    def __init__(self, labels: Any) -> None:
        self.labels = unwrap(labels)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        outputs, restore = unwrap(outputs)
        classes = outputs.argmax(-1)
        assert classes.shape == self.labels.shape
        return restore(classes != self.labels)


class TargetedMisclassification(Criterion):
    """The class of `target_classes` int64 [B] has the largest output."""

    def __init__(self, target_classes: Any) -> None:
        self.target_classes = unwrap(target_classes)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target_classes!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        outputs, restore = unwrap(outputs)
        classes = outputs.argmax(-1)
        assert classes.shape == self.target_classes.shape
        return restore(classes == self.target_classes)


def get_criterion(criterion: Any) -> Criterion:
    """Labels mean misclassification."""
    return criterion if isinstance(criterion, Criterion) else Misclassification(criterion)
