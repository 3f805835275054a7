"""What three processes tell each other, one after the other; each saves what it heard for test_distributed.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robustfast.distributed import World
from robustfast.errors import UserError


def gradients(world: World) -> dict[str, Any]:
    """Parameters that have a gradient everywhere, in one process, nowhere; of two dtypes and two layouts."""
    everywhere = nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
    somewhere = nn.Parameter(torch.zeros(3))
    nowhere = nn.Parameter(torch.zeros(4))
    double = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    values = torch.arange(24.0).reshape(2, 3, 2, 2) * 10.0**world.rank
    everywhere.grad = values.to(memory_format=torch.channels_last)
    if world.rank == 1:
        somewhere.grad = torch.tensor([1.0, 2.0, 3.0])
    double.grad = torch.full((2,), 0.1, dtype=torch.float64)
    messages: list[torch.dtype] = []
    send = dist.all_reduce

    def counted(message: Tensor) -> None:
        messages.append(message.dtype)
        send(message)

    dist.all_reduce = counted
    world.sum_gradients(iter([everywhere, somewhere, nowhere, double]))
    dist.all_reduce = send
    return {
        "everywhere": everywhere.grad,
        "strides": everywhere.grad.stride() == everywhere.stride(),
        "somewhere": somewhere.grad,
        "nowhere": nowhere.grad,
        "double": double.grad,
        "messages": messages,
    }


def buffers(world: World) -> dict[str, Any]:
    """Two batch norms, one without statistics, and a constant that no sum may touch."""
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(1, track_running_stats=False))
    )
    model.register_buffer("constant", torch.tensor([0.1]))
    model[0].running_mean += world.rank
    model[1][0].running_var *= 4.0**world.rank
    model[0].num_batches_tracked += 5
    world.same_buffers(model)
    return dict(model.named_buffers())


def untrained(world: World) -> dict[str, Any]:
    """A batch norm of the same statistics in every process, before and after."""
    model = nn.BatchNorm1d(500)
    generator = torch.Generator().manual_seed(0)
    for statistic in (model.running_mean, model.running_var):
        statistic.copy_(torch.rand(500, generator=generator))
    before = {name: value.clone() for name, value in model.named_buffers()}
    world.same_buffers(model)
    return {"before": before, "after": dict(model.named_buffers())}


def late(world: World) -> str:
    """The last process comes long after any message would be given up; how the others wait for it."""
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    backend._set_default_timeout(timedelta(seconds=0.2))
    if world.rank == world.size - 1:
        time.sleep(1)
    world.wait()
    backend._set_default_timeout(timedelta(minutes=10))
    return "all came"


def lost(world: World) -> str:
    """The last process is killed while the others wait for it as long as they ever do; what they say then."""
    if world.rank == world.size - 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    # Torchrun ends the others when it sees that; they shall have seen it themselves.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        world.wait()
    except UserError as error:
        return str(error)
    return "noticed nothing"


def main(folder: Path) -> None:
    with World.joined() as world:
        value = torch.tensor([world.rank, 10 * world.rank])
        heard = {
            "world": (world.rank, world.size, world.restarts, world.writes, list(world.part(10))),
            "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
            "sum": world.sum(value),
            "given": value,
            "stack": world.stack(value.t()),
            "any": [world.any(False), world.any(world.rank == 2)],
            "gather": world.gather({"rank": world.rank, "labels": torch.arange(world.rank)}),
            "broadcast": world.broadcast(f"from {world.rank}"),
            "gradients": gradients(world),
            "buffers": buffers(world),
            "untrained": untrained(world),
            "late": late(world),
        }
        torch.save(heard, folder / f"{world.rank}.pt")
        heard["lost"] = lost(world)
        torch.save(heard, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
