"""PGD that clips to the box before it projects onto the ball."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robustfast.attacks.pgd import PGD
from robustfast.ops import pgd_step

__all__ = ["ClipFirst"]


class ClipFirst(PGD):
    """PGD in the order step, clip, project: cleverhans, advertorch under l2, and TRADES under l2.

    `PGD` projects, then clips. Under linf both orders give the same point; under l2 a point that is clipped first is
    shortened less: both stay in the ball and the box. Under l1 it is `PGD`.
    """

    name = "pgd"

    def _move(self, here: Tensor, direction: Tensor, centre: Tensor, sizes: Mapping[str, Tensor]) -> None:
        if self.norm != "l2":
            return super()._move(here, direction, centre, sizes)
        unbounded = torch.finfo(here.dtype).max
        rule = {"norm": self.norm, "bounds": self.bounds, "step": self.step, "q": self.q}
        pgd_step(here, direction, centre, out=here, eps=unbounded, step_size=sizes["step_size"], **rule)
        delta = here - centre
        dims = tuple(range(1, here.dim()))
        length = torch.linalg.vector_norm(delta, dim=dims, keepdim=True, dtype=torch.float64)
        eps = sizes["eps"].double()
        eps = eps.reshape(-1, *[1] * len(dims)) if eps.dim() else eps
        shrink = torch.where(length > eps, eps / length, 1.0)
        torch.add(centre, (delta * shrink).to(here.dtype), out=here)
        # Between two points of the box lies nothing outside it, but for the rounding of the sum.
        here.clamp_(*self.bounds)
        return None
