"""Tensors of eagerpy, which Foolbox's scripts may pass, without needing eagerpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["unwrap"]


def unwrap(value: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The torch tensor behind `value`, and what makes a result of the same kind of another one."""
    raw = getattr(value, "raw", None)
    if isinstance(raw, Tensor):
        return raw, type(value)
    return value, lambda result: result
