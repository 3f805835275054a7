"""Batch norms over the unequal batches of three processes; each saves what it got for test_sync_batch_norm.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustfast.attacks import eval_mode
from robustfast.distributed import World
from robustfast.models.sync_batch_norm import synchronise

ROWS = (range(5), range(5, 8), range(8, 12))
"""The rows of the whole batch that each process has."""

CASES: dict[str, dict[str, Any]] = {
    "float64": {"dtype": torch.float64},
    "float32": {},
    "far from zero": {"mean": 1000.0},
    "bfloat16": {"dtype": torch.bfloat16},
    "channels last": {"memory_format": torch.channels_last},
    "cumulative": {"momentum": None},
    "no weights": {"affine": False},
    "no statistics": {"track_running_stats": False},
    "vectors": {"shape": (12, 3), "norm": nn.BatchNorm1d},
    "sequences": {"shape": (12, 3, 5), "norm": nn.BatchNorm1d},
    "volumes": {"shape": (12, 3, 2, 1, 2), "norm": nn.BatchNorm3d},
}


def whole(
    *,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (12, 3, 2, 4),
    mean: float = 1.0,
    memory_format: torch.memory_format = torch.contiguous_format,
    norm: type[nn.Module] = nn.BatchNorm2d,
    **settings: Any,
) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model that is one batch norm, a batch, and the gradient of a loss in the model's output."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(norm(3, **settings))
    if dtype == torch.float64:
        model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    # The rows differ, so that no process has the statistics of all.
    x = (3 * x + mean + torch.arange(12.0).reshape(-1, *(1,) * (len(shape) - 1))).to(dtype)
    return model, x.contiguous(memory_format=memory_format), grad.to(dtype)


def computed(model: nn.Sequential, x: Tensor, grad: Tensor) -> dict[str, Any]:
    """Two training passes, one with the batch's statistics as an attack's, one in eval mode."""
    leaf = x.clone().requires_grad_()
    model.train()
    model(leaf)
    trained = model(leaf)
    trained.backward(grad)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with eval_mode(model, batch_norm="batch"):
        attacked = model(x)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    return {
        "trained": trained.detach(),
        "grad": leaf.grad,
        "parameters": {name: parameter.grad for name, parameter in model.named_parameters()},
        "buffers": buffers,
        "attacked": attacked.detach(),
        "evaluated": model.eval()(x).detach(),
        "dense": trained.stride() == x.stride() == leaf.grad.stride(),
    }


def main(folder: Path) -> None:
    with World.joined() as world:
        rows = ROWS[world.rank]
        got = {}
        for name, case in CASES.items():
            model, x, grad = whole(**case)
            synchronise(model, world, torch.device("cpu"))
            got[name] = computed(model, x[rows.start : rows.stop], grad[rows.start : rows.stop])
        torch.save(got, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
