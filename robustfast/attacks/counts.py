"""Settings that count something."""

from __future__ import annotations

__all__ = ["whole_number"]


def whole_number(name: str, value: int, least: int = 1) -> int:
    """`value`, unless it is no whole number from `least`.

    Raises:
        ValueError: names the setting.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number from {least}")
    return value
