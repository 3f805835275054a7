"""What runs in a process before and after a process group in which torch made an optimizer, for test_distributed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from robustfast.distributed import World


def threads() -> list[str]:
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def main(folder: Path) -> None:
    fresh, before = "torch._dynamo" not in sys.modules, threads()
    with World.joined() as world:
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        world.barrier()
    (folder / f"{world.rank}.json").write_text(json.dumps([fresh, before, threads()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
