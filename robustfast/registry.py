"""Look a name up in a table, and say which names there are when it is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from robustfast.errors import UserError

__all__ = ["lookup"]

T = TypeVar("T")


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """Return `table[name]`.

    Args:
        kind: what the table holds, for the message ("model", "preset").
        table: names to entries.
        name: the name asked for.

    Raises:
        UserError: `name` is not in `table`; the message lists the known names and the closest one.
    """
    if name in table:
        return table[name]
    close = get_close_matches(name, table, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    raise UserError(f"unknown {kind} {name!r}{hint} known: {', '.join(sorted(table))}")
