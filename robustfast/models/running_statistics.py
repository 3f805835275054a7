"""What one pass did to the running statistics of batch norms, to do it again without the pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["RunningUpdate", "recorded"]


class RunningUpdate:
    """One pass's update of the running statistics of a module's batch norms, filled by `recorded`.

    A batch norm in train mode takes its running value r to (1 - momentum) r + momentum s with the batch's statistic s.
    So a second pass of the same images through the same weights does the same once more, with the same s: `replay` does
    it alone, with a few kernels for all batch norms together and without the host waiting for the device. Up to
    rounding the running statistics are then those after the pass, however they have moved in between.
    """

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self._buffers: list[Tensor] = []
        self._counters: list[Tensor] = []
        self._kept: list[float] = []
        for norm in norms:
            if norm.momentum is None:
                raise ValueError(
                    "a batch norm with momentum=None (a plain average over all batches): expected a number, as 0.1, "
                    "for its running statistics to be recorded"
                )
            # As torch's own update, unseen by autograd: a pass before it can still be differentiated after it.
            self._buffers += [norm.running_mean.data, norm.running_var.data]  # type: ignore[union-attr]
            self._kept += [1 - norm.momentum] * 2
            if norm.num_batches_tracked is not None:
                self._counters.append(norm.num_batches_tracked)
        self._added: list[Tensor] = []
        self._counted: list[Tensor] = []

    def replay(self) -> None:
        """Update the running statistics and the counters of batches once more."""
        if not self._buffers:
            return
        with torch.no_grad():
            torch._foreach_mul_(self._buffers, self._kept)
            torch._foreach_add_(self._buffers, self._added)
            if self._counters:
                torch._foreach_add_(self._counters, self._counted)

    @torch.no_grad()
    def _begin(self) -> None:
        if self._buffers:
            self._added = list(torch._foreach_mul(self._buffers, self._kept))
        self._counted = [counter.clone() for counter in self._counters]

    @torch.no_grad()
    def _end(self) -> None:
        if self._buffers:
            self._added = list(torch._foreach_sub(self._buffers, self._added))
        if self._counters:
            self._counted = list(torch._foreach_sub(self._counters, self._counted))


@contextmanager
def recorded(module: nn.Module) -> Iterator[RunningUpdate]:
    """Record how the one forward pass inside the block moves the running statistics of `module`.

    Only batch norms that track them in train mode are looked at, among them synchronised ones; the pass runs each of
    them once.

    Yields:
        What `replay` does again, once the block has ended.

    Raises:
        ValueError: one of them has momentum None.
    """
    update = RunningUpdate(
        [
            norm
            for norm in module.modules()
            if isinstance(norm, _BatchNorm)
            and norm.training
            and norm.track_running_stats
            and norm.running_mean is not None
        ]
    )
    update._begin()
    yield update
    update._end()
