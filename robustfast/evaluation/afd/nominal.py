"""Accuracy on clean images, under PGD, C&W and AutoAttack (table 1)."""

from __future__ import annotations

from robustfast.evaluation.parts import Part, PartContext, PartResult

__all__ = ["NOMINAL"]


def _make(context: PartContext) -> PartResult:
    raise NotImplementedError


NOMINAL = Part("nominal", "accuracy on clean images, under PGD, C&W and AutoAttack (table 1)", _make)
