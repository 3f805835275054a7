"""Draws, attacks and twenty training steps in one, two and four processes, for test_several_processes.py.

A program of its own, because it forks (as kill_and_resume.py), with the variables that torchrun would set: seven
processes for the price of one start. Each saves what it got.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than all of the training here
from forked import ended, process
from tiny_runs import tiny
from torch import Tensor
from torch.distributed import TCPStore

from robustfast.attacks import ThreeWayPGD
from robustfast.data import Dataset, Feed, feed
from robustfast.data import load as load_anew
from robustfast.distributed import World
from robustfast.models import ThreeWay
from robustfast.models.sync_batch_norm import synchronise
from robustfast.objectives import OBJECTIVES
from robustfast.ops import random_start
from robustfast.training.engine import Engine
from robustfast.training.held_out import HeldOutCheck, spread
from robustfast.training.precision import Precision

CPU = torch.device("cpu")
load = functools.cache(load_anew)
STEPS = 20


def draws(world: World) -> list[dict[str, Tensor]]:
    """Two epochs of 52 images in batches of 16, the last one of four, with crops and flips; and random starts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (52, 3, 8, 8), dtype=torch.uint8, generator=generator)
    dataset = Dataset("noise", images, torch.arange(52) % 10, tuple("0123456789"))
    source = feed(
        dataset, 16, seed=5, augment=True, loader="resident", rank=world.rank, world=world.size, say=None
    )
    return [
        {
            "x": batch.x,
            "y": batch.y,
            "index": batch.index,
            "share": torch.tensor([batch.share]),
            **{
                norm: random_start(batch.x, eps=0.1, norm=norm, seed=7, index=batch.index)
                for norm in ("linf", "l2")
            },
        }
        for epoch in range(2)
        for batch in source.batches(epoch)
    ]


def three_way(world: World, *, dtype: torch.dtype, sync: bool = True) -> ThreeWay:
    torch.manual_seed(0)
    model = ThreeWay("digits_cnn", num_classes=10, in_channels=1).to(dtype)
    if sync:
        synchronise(model, world, CPU)
    return model.train()


def digits(world: World, images: int, batch: int) -> Feed:
    return feed(
        spread(load("digits", "train"), images), batch, seed=0, rank=world.rank, world=world.size, say=None
    )


def attacks(world: World) -> dict[str, dict[str, Tensor]]:
    """Five float64 steps on 30 digits, by running statistics and by those of the whole batch."""
    model = three_way(world, dtype=torch.float64)
    batch = next(digits(world, 30, 30).batches(0))
    found = {}
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        for statistics in ("eval", "batch"):
            attack = ThreeWayPGD(
                model, eps=eps, step_size=eps / 3, steps=5, norm=norm, seed=3, batch_norm=statistics
            )
            found[f"{norm} {statistics}"] = attack(batch.x.double(), batch.y, batch.index, epoch=1)
    return found


def training(world: World, method: str, *, dtype: torch.dtype, sync: bool = True) -> dict[str, Any]:
    """The losses of twenty steps on batches of 60 digits, every seventh of 20, and where they lead.

    The learning rate is one at which training is stable from its first step: where it is not, a rounding grows to any
    size within twenty steps, in one process as in several.
    """
    config = tiny(f"digits-{method}", batch_size=60, batch_norm="sync" if sync else "local")
    model = three_way(world, dtype=dtype, sync=sync)
    objective = OBJECTIVES[method](model, config.objective, config.attack, seed=0)
    engine = Engine(objective, config, CPU, world=world)
    source = digits(world, 380, 60)
    losses = []
    for number in range(STEPS):
        epoch, step = divmod(number, len(source))
        batch = next(source.batches(epoch, start=step))
        objective.begin(epoch, number / STEPS)
        terms = engine.step(batch._replace(x=batch.x.to(dtype)), lr=0.02)
        losses.append(float(world.sum(terms["loss"].double() * batch.share)))
    return {"losses": torch.tensor(losses, dtype=torch.float64), "state": dict(model.state_dict())}


def unequal(world: World) -> dict[str, Tensor]:
    """Where training with synchronised statistics leads that cuts batches of 10 into three parts, of 2 or 3 images."""
    config = tiny("digits-st", batch_size=10, batch_norm="sync", accumulate=3)
    model = three_way(world, dtype=torch.float32)
    engine = Engine(
        OBJECTIVES["st"](model, config.objective, config.attack, seed=0), config, CPU, world=world
    )
    for batch in digits(world, 20, 10).batches(0):
        engine.step(batch, lr=0.02)
    return dict(model.state_dict())


def check(world: World) -> dict[str, dict[str, float]]:
    """The held-out check of an untrained model: 45 images, which do not divide into equal parts."""
    config = tiny(batch_size=8, validate_images=45)
    model = three_way(world, dtype=torch.float32, sync=False)
    held_out = load("digits", "test")
    return vars(HeldOutCheck(model, "srn", held_out, config, Precision("fp32", CPU), world)(epoch=1))


def everything(world: World) -> dict[str, Any]:
    return {
        "draws": draws(world),
        "attacks": attacks(world),
        "aatpp": training(world, "aatpp", dtype=torch.float32),
        "at in float64": training(world, "at", dtype=torch.float64),
        "local": training(world, "at", dtype=torch.float32, sync=False),
        "unequal": {"state": unequal(world)},
        "check": check(world),
    }


def one_of(size: int, rank: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{size}",
        "LOCAL_RANK": f"{rank}",
        "LOCAL_WORLD_SIZE": f"{size}",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": f"{port}",
        # Where the processes meet is the parent's, as torchrun's is: no port that another program could take first.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    with World.joined() as world:
        assert (world.rank, world.size) == (rank, size)
        torch.save(everything(world), folder / f"{rank}-of-{size}.pt")


def in_time(waiting: int, forked: int, job: Callable[..., None], *arguments: Any) -> None:
    """Do the job once every process has closed the pipe's end `forked`."""
    os.close(forked)
    os.read(waiting, 1)
    job(*arguments)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for split in ("train", "test"):
        load("digits", split)
    # One for all, as torchrun's serves the processes it starts again: what the ones before left there must not mislead.
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for size in (1, 2, 4):
        # None comes to the store before the last is forked: for each that comes its thread looks names up, under
        # a lock of the C library that a process forked meanwhile would inherit locked.
        waiting, forked = os.pipe()
        started = [
            process(functools.partial(in_time, waiting, forked, one_of, size, rank, store.port, folder))
            for rank in range(size)
        ]
        os.close(forked)
        codes = [ended(pid) for pid in started]
        os.close(waiting)
        assert codes == [0] * size, "a process failed; its trace stands above"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
