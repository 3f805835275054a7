"""PGD as Foolbox defines it: steps relative to eps, and an l1 ball that is scaled into."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.pgd import PGD
from robustfast.ops import pgd_step

__all__ = ["PGDFoolbox"]

_STEPS = {"linf": (0.01 / 0.3, 40), "l2": (0.025, 50), "l1": (0.025, 50)}


class PGDFoolbox(PGD):
    """LinfPGD, L2PGD and L1PGD of Foolbox 3 (Rauber et al. 2020), which AFD evaluates with.

    Steps are a fraction of eps along the gradient of the norm (its sign for linf), the start is uniform in the ball,
    the result the last iterate. Under "l1" a point outside is scaled back along its line to x, where `PGD` takes the
    nearest point of the ball.

    Args:
        model: as of `PGD`.
        eps: radius.
        norm: "linf", "l2" or "l1".
        steps: None: 40 for linf, 50 for l2 and l1.
        relative_step: as a fraction of eps; None: 0.01 / 0.3 for linf, 0.025 for l2 and l1.
        settings: further keywords of `PGD`, but for step and step_size.

    Raises:
        ValueError: as `PGD`.
    """

    name = "pgd-foolbox"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        norm: str = "linf",
        steps: int | None = None,
        relative_step: float | None = None,
        **settings: Any,
    ) -> None:
        default_step, default_steps = _STEPS.get(norm, _STEPS["linf"])
        super().__init__(
            model,
            eps,
            norm=norm,
            step="grad" if norm in ("l2", "l1") else "auto",
            steps=default_steps if steps is None else steps,
            relative_step=default_step if relative_step is None else relative_step,
            **settings,
        )

    def _move(self, here: Tensor, direction: Tensor, centre: Tensor, sizes: Mapping[str, Tensor]) -> None:
        if self.norm != "l1":
            return super()._move(here, direction, centre, sizes)
        unbounded = {"eps": torch.finfo(here.dtype).max, "bounds": (-torch.inf, torch.inf)}
        pgd_step(
            here,
            direction,
            centre,
            out=here,
            step_size=sizes["step_size"],
            norm="l1",
            step="grad",
            **unbounded,
        )
        delta = here - centre
        dims = tuple(range(1, here.dim()))
        length = delta.abs().sum(dims, keepdim=True, dtype=torch.float64)
        eps = sizes["eps"].double()
        eps = eps.reshape(-1, *[1] * len(dims)) if eps.dim() else eps
        shrink = torch.where(length > eps, eps / length, 1.0)
        torch.add(centre, (delta * shrink).to(here.dtype), out=here)
        here.clamp_(*self.bounds)
        return None
