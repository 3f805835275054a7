"""The sweeps of this run and of those of --against in one figure (figures 2, A1 to A3, A5)."""

from __future__ import annotations

from robustfast.evaluation.parts import Part, PartContext, PartResult

__all__ = ["CURVES"]


def _make(context: PartContext) -> PartResult:
    raise NotImplementedError


CURVES = Part(
    "curves",
    "the sweeps of this run and of those of --against in one figure (figures 2, A1 to A3, A5)",
    _make,
    needs=("against",),
)
