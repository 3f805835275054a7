"""What the tests of all adapters share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import Tensor


def check(one: Any, other: Any, where: str = "result") -> None:
    """Same types, shapes, dtypes and devices, through dictionaries, lists and tuples; same strings and flags.

    `one` is ours, and never requires a gradient; some results of peers do, by oversight.
    """
    assert type(one) is type(other), where
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            check(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            check(*pair, f"{where}[{number}]")
    elif isinstance(one, Tensor):
        assert one.shape == other.shape, where
        assert one.dtype == other.dtype, where
        assert one.device == other.device, where
        assert not one.requires_grad, where
    elif isinstance(one, (str, bool)):
        assert one == other, where


@pytest.fixture
def same_kind() -> Callable[[Any, Any], None]:
    return check
