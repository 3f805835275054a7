"""The unit in which a figure writes radii."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["radius_name", "radius_unit"]


def radius_unit(eps: Sequence[float], norm: str) -> tuple[float, str]:
    """What to multiply radii by, and the label of their axis: pixels of 255 where people write them so.

    Args:
        eps: all radii of the axis.
        norm: of the ball.
    """
    pixels = (
        norm == "linf" and max(eps) < 1 and all(abs(value * 255 - round(value * 255)) < 1e-6 for value in eps)
    )
    return (255.0, f"eps ({norm}, 1/255)") if pixels else (1.0, f"eps ({norm})")


def radius_name(value: float, unit: float) -> str:
    """One radius in that unit: "8/255", "0.3"."""
    return f"{value * unit:.0f}/255" if unit == 255 else f"{value:g}"
