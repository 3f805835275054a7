"""PGD that leaves each sample where the model was first fooled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustfast.attacks.compaction import remaining
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.gradient import largest_entry

if TYPE_CHECKING:
    from robustfast.attacks.pgd import PGD

__all__ = ["BLOCK", "UntilFooled"]

BLOCK = 5
"""Steps between two looks at who is left. On a GPU a look waits for the device."""


class UntilFooled:
    """The steps of one start, sample by sample until the model is fooled.

    A pass tells of the images it was taken at, so that looking costs none. A sample that was fooled keeps its place in
    the block, unmoved, and is left out of the next one.

    Args:
        attack: whose gradients, directions and moves these are.
    """

    def __init__(self, attack: PGD) -> None:
        self._attack = attack
        self._graph: GraphedLoop | None = None

    def __call__(self, buffers: dict[str, Tensor], fooled: Tensor) -> None:
        """Run all steps, in place on "x_adv" and on `fooled` bool [B]; those fooled before are left alone."""
        attack = self._attack
        own = attack._state(buffers["x"][:0])
        if self._graph is None:
            writes = ("x_adv", "fooled", "peaks", *own)
            self._graph = GraphedLoop(attack.model, self._block, warn=attack.engine == "auto", writes=writes)
        by_row = {name: value for name, value in buffers.items() if value.dim()} | {"fooled": fooled}
        shared = {name: value for name, value in buffers.items() if not value.dim()}
        for first in range(0, attack.steps, BLOCK):
            left = remaining(fooled, static=attack._uses_graph(buffers["x"], self._graph))
            if not left.count:
                return
            part = left.take(by_row)
            steps = min(BLOCK, attack.steps - first)
            part["peaks"] = part["x"].new_empty(len(left.rows), steps)
            attack._run_loop(self._graph, {**part, **shared}, steps=steps)
            attack._log.add(part["peaks"].t(), left.rows)
            left.put(by_row, part, ("x_adv", "fooled", *own))

    def _block(
        self,
        x_adv: Tensor,
        fooled: Tensor,
        peaks: Tensor,
        x: Tensor,
        target: Tensor,
        eps: Tensor,
        step_size: Tensor,
        *,
        steps: int,
        **state: Tensor,
    ) -> None:
        attack, sizes = self._attack, {"eps": eps, "step_size": step_size}
        for step in range(steps):
            found = attack._gradient.evaluate(x_adv, target)
            largest_entry(found.grad, out=peaks[:, step])
            fooled |= attack._fooled(found.logits, target)
            before = x_adv.clone()
            attack._move(x_adv, attack._direction(found.grad, state), x, sizes)
            torch.where(fooled.reshape(-1, *[1] * (x.dim() - 1)), before, x_adv, out=x_adv)
