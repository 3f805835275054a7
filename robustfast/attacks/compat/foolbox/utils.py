"""``foolbox.utils``: the accuracy, and the sample images that are not ours."""

from __future__ import annotations

from typing import Any, NoReturn

from robustfast.attacks.compat.foolbox.models import accuracy
from robustfast.attacks.compat.model import unsupported

__all__ = ["accuracy", "samples"]


def samples(*arguments: Any, **keywords: Any) -> NoReturn:
    """Foolbox's sample images are not ours.

    Raises:
        AttributeError: always; take images of your own, or keep foolbox for this one call.
    """
    raise unsupported("foolbox", "samples", "take images of your own, or foolbox.samples for this one call")


def __getattr__(name: str) -> NoReturn:
    raise unsupported("foolbox.utils", name)
