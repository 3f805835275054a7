"""Triton's interpreter, TRITON_INTERPRET=1, as these kernels need it."""

from __future__ import annotations

import os
from typing import Any

import triton

__all__ = ["INTERPRETED", "mend"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def mend() -> None:
    """Let loops run up to an argument under Triton 3.6.

    Its interpreter makes such a bound, an array of one element, a number by int(), which numpy refuses from 2.4 on;
    Triton 3.7 does it rightly.
    """
    if not INTERPRETED or not triton.__version__.startswith("3.6."):
        return
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: type, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch
