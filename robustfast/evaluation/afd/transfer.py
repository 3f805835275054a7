"""Accuracy on images of PGD against other runs (table A3)."""

from __future__ import annotations

from robustfast.evaluation.parts import Part, PartContext, PartResult

__all__ = ["TRANSFER"]


def _make(context: PartContext) -> PartResult:
    raise NotImplementedError


TRANSFER = Part(
    "transfer", "accuracy on images of PGD against other runs (table A3)", _make, needs=("against",)
)
