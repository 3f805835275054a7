"""Whether a module still has the weights that it was built with."""

from __future__ import annotations

from torch import nn

__all__ = ["untrained"]


def untrained(module: nn.Module) -> bool:
    """Whether no batch has ever passed the module in train mode, as its batch norms count.

    A module without batch norms cannot be told, and counts as trained.
    """
    counts = [int(value) for name, value in module.named_buffers() if name.endswith("num_batches_tracked")]
    return bool(counts) and not any(counts)
