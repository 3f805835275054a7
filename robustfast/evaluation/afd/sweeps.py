"""Accuracy against eps under nine attacks, and the areas (table 2, figures 2, A1 to A3)."""

from __future__ import annotations

from robustfast.evaluation.parts import Part, PartContext, PartResult

__all__ = ["SWEEPS"]


def _make(context: PartContext) -> PartResult:
    raise NotImplementedError


SWEEPS = Part(
    "sweeps", "accuracy against eps under nine attacks, and the areas (table 2, figures 2, A1 to A3)", _make
)
