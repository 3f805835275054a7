"""Several processes that train one model: who this one is among them, and what they tell each other."""

from __future__ import annotations

import importlib
import os
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustfast.errors import UserError

__all__ = ["PATIENCE", "TIMEOUT", "World"]

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it gives up: far longer than any of them works alone between messages.
"""

PATIENCE = timedelta(days=1)
"""The same behind work that is shared out in large pieces, of which one process may have one more than another."""


class World:
    """The processes of a run. Alone, every method is the identity and costs nothing.

    The methods that pass messages are collective: all processes call them, in the same order.

    Args:
        rank: this process's number, from 0.
        size: how many there are; more than one need the process group that `joined` makes.
        restarts: how often torchrun has started the processes again after one of them ended.

    Attributes:
        rank, size, restarts: the arguments.

    Raises:
        UserError: from every message, where another process has ended or does not answer.
    """

    def __init__(self, rank: int = 0, size: int = 1, restarts: int = 0) -> None:
        self.rank, self.size, self.restarts = rank, size, restarts

    @classmethod
    @contextmanager
    def joined(cls, device: str = "cpu", *, timeout: timedelta = TIMEOUT) -> Iterator[World]:
        """The world that torchrun describes in the environment; without it, a world of one.

        Args:
            device: "cuda": process number LOCAL_RANK of a machine takes its GPU of that number as the current device,
                and tensors on GPUs travel over NCCL. "cpu": over gloo, on the loopback interface alone where no other
                machine takes part. "auto" is "cuda" where there is a GPU.
            timeout: how long to wait for the others, now and in every message.

        Raises:
            UserError: torchrun's variables are incomplete or contradict each other, a machine has fewer GPUs than
                processes, or the others cannot be reached.
        """
        rank, size, local_rank, restarts = _described()
        if size == 1:
            yield cls(restarts=restarts)
            return
        # CUDA that was asked for and is absent is refused where the device is resolved, alone or not.
        gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
        if gpus:
            if local_rank >= gpus:
                raise UserError(
                    f"process {local_rank} of this machine has no GPU of its own, it has {gpus}: give torchrun "
                    f"--nproc-per-node {gpus} at most, or train with --device cpu"
                )
            torch.cuda.set_device(local_rank)
        # Torch imports this with the first optimizer, and its functions take the process group that is the default by
        # then as a default argument. What they hold outlives `destroy_process_group`: gloo's threads go on until the
        # interpreter ends, and one that then frees a tensor aborts the process (pytorch/pytorch#190489).
        importlib.import_module("torch.distributed.nn.functional")
        try:
            with _on_this_machine(size):
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if gpus else "gloo",
                    store=_fresh_store(rank, size, timeout),
                    rank=rank,
                    world_size=size,
                    timeout=timeout,
                )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"process {rank} of {size} cannot reach the others at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} ({_first_line(error)}): start as many as WORLD_SIZE says, best by "
                f"torchrun, on machines that reach each other"
            ) from error
        try:
            world = cls(rank, size)
            # Torchrun counts on each machine apart.
            world.restarts = max(world.gather(restarts))
            yield world
        except BaseException:
            # Leaving NCCL in good order waits for the others, who wait for this process: its end is what tells them.
            if not gpus:
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """Which of `count` things are this process's: contiguous, disjoint, complete, sizes at most one apart."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor of the same shape and dtype in each."""
        if self.size == 1:
            return value
        return self._summed(value.clone())

    def stack(self, value: Tensor) -> Tensor:
        """Every process's tensor of one shape and dtype, [size, *shape], in the order of their ranks."""
        if self.size == 1:
            return value[None]
        values = list(value.new_empty(self.size, *value.shape))
        with self._answered():
            dist.all_gather(values, value.contiguous())
        return torch.stack(values)

    def any(self, flag: bool) -> bool:
        """Whether any process says so: what all of them must decide alike."""
        # On the CPU also where the model is on a GPU, which then is not waited for.
        return bool(self.sum(torch.tensor(int(flag)))) if self.size > 1 else flag

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in one message for each dtype.

        A parameter without a gradient here counts as zero, and afterwards has one exactly where some process had one:
        an optimizer that passes over it does so in all of them, as a single process would.
        """
        if self.size == 1:
            return
        by_kind: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_kind[parameter.dtype, parameter.device].append(parameter)
        for alike in by_kind.values():
            present = [parameter.grad is not None for parameter in alike]
            # How many processes have each gradient travels behind the gradients.
            message = self._summed(
                torch.cat(
                    [
                        *(p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in alike),
                        torch.tensor(present, dtype=alike[0].dtype, device=alike[0].device),
                    ]
                )
            )
            *summed, counts = message.split([*(p.numel() for p in alike), len(alike)])
            # Read by those alone who lack one: to read is to wait for the device.
            somewhere = present if all(present) else counts.tolist()
            for parameter, value, has in zip(alike, summed, somewhere, strict=True):
                if has:
                    if parameter.grad is None:
                        parameter.grad = torch.empty_like(parameter)
                    parameter.grad.copy_(value.view(parameter.shape))

    def same_buffers(self, module: nn.Module) -> None:
        """Average the running mean and variance of each batch norm over the processes: all hold the same then.

        Where they do already, as in a part that is not trained, nothing changes.
        """
        if self.size == 1:
            return
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        found = [(norm.running_mean, norm.running_var) for norm in norms]
        buffers = [buffer for pair in found for buffer in pair if buffer is not None]
        if not buffers:
            return
        # In float64: three times a float32, over three, is the float32 again, which it need not be in float32.
        message = self._summed(torch.cat(buffers).double()) / self.size
        with torch.no_grad():
            for buffer, mean in zip(buffers, message.split([len(buffer) for buffer in buffers]), strict=True):
                buffer.copy_(mean)

    def gather(self, value: Any) -> list[Any]:
        """What every process passed, in the order of their ranks; tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """What rank 0 passed; tensors must be on the CPU."""
        if self.size == 1:
            return value
        values = [value]
        with self._answered():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Return when all processes have come here."""
        self.any(False)

    def wait(self, timeout: timedelta = PATIENCE) -> None:
        """The same where one may work much longer than another: wait for as long as that takes, within reason.

        A process that is killed meanwhile closes its connections, by which the others notice at once.
        """
        if self.size == 1:
            return
        options = dist.AllreduceOptions()
        options.timeout = timeout
        with self._answered():
            # On the CPU, as `any`. Torch's `all_reduce` takes no time of its own.
            dist.group.WORLD.allreduce([torch.zeros(1)], options).wait()

    def _summed(self, message: Tensor) -> Tensor:
        with self._answered():
            dist.all_reduce(message)
        return message

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """One line instead of a trace in each process that outlives another."""
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} of {self.size} lost touch with the others ({_first_line(error)}): one of them "
                f"hangs, was killed, or says itself what went wrong"
            ) from error


def _described() -> tuple[int, int, int, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK and the restart count from the environment; (0, 1, 0, 0) where it has none.

    Raises:
        UserError: one is missing, no whole number, or out of range.
    """
    if not {"RANK", "WORLD_SIZE"} & set(os.environ):
        return 0, 1, 0, 0
    mend = "start with torchrun, which sets it, or unset RANK and WORLD_SIZE to train in one process"

    def number(name: str, least: int, below: int | None = None) -> int:
        text = os.environ.get(name, "")
        expected = f"at least {least}" if below is None else f"{least} to {below - 1}"
        if (
            not text.isascii()
            or not text.isdigit()
            or int(text) < least
            or int(text) >= (below or int(text) + 1)
        ):
            found = f"is {text!r}" if name in os.environ else "is not set"
            raise UserError(
                f"the environment variable {name} {found}, expected a whole number, {expected}: {mend}"
            )
        return int(text)

    size = number("WORLD_SIZE", 1)
    rank = number("RANK", 0, size)
    restarts = number("TORCHELASTIC_RESTART_COUNT", 0) if "TORCHELASTIC_RESTART_COUNT" in os.environ else 0
    if size == 1:
        return rank, size, 0, restarts
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"the environment variable MASTER_ADDR is not set, expected rank 0's machine: {mend}")
    number("MASTER_PORT", 1, 1 << 16)
    return rank, size, number("LOCAL_RANK", 0, size), restarts


def _fresh_store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """Where these processes leave each other their addresses, and no process before them has.

    Torchrun's store outlives the processes, and torch 2.13 reads from it, after a restart, whichever address it finds
    under a rank: also that of a dead process (pytorch/pytorch#135712, #167288). Restart counts do not tell the two
    apart, because each machine has its own. So rank 0 draws a name for this start and tells it to those who ask now.

    Raises:
        RuntimeError: the others did not come in time.
    """
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))
    if rank:
        question = uuid.uuid4().hex
        store.set(f"robustfast/asks/{rank}", question)
        name = store.get(f"robustfast/told/{question}").decode()
        store.add(f"robustfast/came/{name}", 1)
        return dist.PrefixStore(name, store)
    name, answered = uuid.uuid4().hex, set()
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(f"robustfast/came/{name}", 0) < size - 1:
        asking = [key for other in range(1, size) if store.check([key := f"robustfast/asks/{other}"])]
        questions = {store.get(key).decode() for key in asking}
        for question in questions - answered:
            store.set(f"robustfast/told/{question}", name)
        answered |= questions
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {timeout.total_seconds():g} s for {size - 1} others")
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


@contextmanager
def _on_this_machine(size: int) -> Iterator[None]:
    """Let gloo use the loopback interface where all processes are on this machine, and nobody has chosen another.

    It would take the interface of the host's name, which a laptop without a network or a container may not have.
    """
    chosen, loopback = "GLOO_SOCKET_IFNAME", ("lo", "lo0")
    names = {name for _, name in socket.if_nameindex()} if hasattr(socket, "if_nameindex") else set()
    name = next((name for name in loopback if name in names), None)
    if chosen in os.environ or os.environ.get("LOCAL_WORLD_SIZE") != str(size) or name is None:
        yield
        return
    os.environ[chosen] = name
    try:
        yield
    finally:
        del os.environ[chosen]


def _first_line(error: Exception) -> str:
    """What torch says, without the address of its source line before it, and the advice and the stack behind it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if line.startswith("[") and "] " in line:
        line = line.partition("] ")[2]
    return line.partition(". ")[0]
