"""The exception a user's mistake ends in, in one process or in several."""

from __future__ import annotations

__all__ = ["SaidElsewhereError", "UserError"]


class UserError(ValueError):
    """A mistake in what the user gave: names what came, what was expected and how to mend it.

    The command line prints its message on one line and exits with code 2; library callers can catch it as `ValueError`.
    """


class SaidElsewhereError(UserError):
    """The `UserError` of another process of the run, which prints it: this one ends without a word."""
