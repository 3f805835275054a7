"""The one function that picks a loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robustfast.data.batches import Batch, Feed
from robustfast.data.dataset import Dataset
from robustfast.data.resident import ResidentFeed

__all__ = ["Batch", "Feed", "feed"]


def feed(
    dataset: Dataset,
    batch_size: int,
    *,
    loader: str = "auto",
    say: Callable[[str], Any] | None = print,
    rand_augment: bool = False,
    crop: str = "pad",
    **options: Any,
) -> Feed:
    """Return batches of a data set from the loader that suits it."""
    return ResidentFeed(dataset, batch_size, **options)
