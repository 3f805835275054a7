"""The one exception a user's mistake ends in."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake in what the user gave: names what came, what was expected and how to mend it.

    The command line prints its message on one line and exits with code 2; library callers can catch it as `ValueError`.
    """
