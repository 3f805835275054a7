"""torch.compile that gives way: where it cannot work, the same function runs eagerly and one line says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Compiled"]

# Batches of training and of checks, each whole and partial, with and without gradients, with weights frozen and not:
# more kinds than the eight at which torch gives up on a function. Encoders of one class count together.
_KINDS = 64


class Compiled:
    """A function through ``torch.compile(dynamic=False)``: compiled anew for each kind of input, then reused.

    Args:
        function: what to compile.
        refuse: told, at most once, why it runs eagerly from then on: a Python, processor or compiler that
            torch.compile does not know, or a function that it breaks on. A function's own errors pass through.
        options: further keywords of torch.compile.
    """

    def __init__(self, function: Callable[..., Any], refuse: Callable[[str], Any], **options: Any) -> None:
        self._function = function
        self._refuse = refuse
        self._compiled: Callable[..., Any] | None = None
        try:
            self._compiled = torch.compile(function, dynamic=False, **options)
        except RuntimeError as error:
            refuse(_reason(error))
            return
        # Known to torch once compile was called.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _KINDS)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **keywords)
            except torch._dynamo.exc.TorchDynamoException as error:
                # Raised while compiling: nothing has been computed yet.
                self._compiled = None
                self._refuse(_reason(error))
        return self._function(*args, **keywords)


def _reason(error: Exception) -> str:
    """What torch.compile says, without the backend's name before it and the advice behind it."""
    cause = getattr(error, "inner_exception", None) or error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
