"""Accuracy on images of PGD and C&W against --source (table 1)."""

from __future__ import annotations

from robustfast.evaluation.parts import Part, PartContext, PartResult

__all__ = ["BLACK_BOX"]


def _make(context: PartContext) -> PartResult:
    raise NotImplementedError


BLACK_BOX = Part(
    "black-box", "accuracy on images of PGD and C&W against --source (table 1)", _make, needs=("source",)
)
