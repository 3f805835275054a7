"""Several processes that train one model: who this one is among them, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["World"]


class World:
    """The processes of a run. Alone, every method is the identity and costs nothing.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    @contextmanager
    def joined(cls, device: str = "cpu") -> Iterator[World]:
        """The world that torchrun describes in the environment; without it, a world of one.

        Args:
            device: "cuda" talks over NCCL, one GPU a process; "cpu" over gloo.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            yield cls()
            return
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        try:
            yield cls(dist.get_rank(), size)
        finally:
            dist.destroy_process_group()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape and dtype in each."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so: what all of them must decide alike."""
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one message for all of them."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not grads:
            return
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view(grad.shape))

    def same_buffers(self, module: nn.Module) -> None:
        """Average the floating-point buffers (running statistics) over the processes, so that all hold the same."""
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if self.size == 1 or not buffers:
            return
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.all_reduce(flat)
        flat /= self.size
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view(buffer.shape))

    def gather(self, value: Any) -> list[Any]:
        """What every process passed, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """What rank 0 passed."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()
