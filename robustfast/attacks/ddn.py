"""DDN: the nearest adversarial image on a sphere that shrinks where the model is fooled and grows where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.draws import normal
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.nearest import by_row, distance, give_up_beyond

__all__ = ["DDN"]

FIRST_STEP, LAST_STEP = 1.0, 0.01


class DDN(Attack):
    """Decoupled direction and norm, Rony et al. 2019 (arXiv:1811.09600), algorithm 1.

    Each step moves along the unit gradient of the cross-entropy, by a length that falls from 1 to 0.01 along a cosine,
    and takes the point back to a sphere around x whose radius was multiplied by 1 - gamma where the point before was
    adversarial and by 1 + gamma where not; then to the box. The nearest adversarial point of all `steps` is kept; the
    one after the last step is not looked at.

    Implementations differ:

    * Foolbox (`DDNAttack`) is this one. Where a gradient is zero it draws a normal direction in each step from the
      global generator; here one is drawn per sample, keyed by seed and index, and used whenever that happens, also
      for a gradient that is not finite.
    * The authors' code and adv_lib round every point to 256 levels; adv_lib keeps a point only if it is nearer, not if
      as near.
    * All of them divide zero by zero where a point comes to lie on x itself; here it moves on.

    Args:
        model: see `Attack`.
        eps: None returns the nearest image that was found, x itself where there is none; a radius gives x itself
            where the nearest lies farther.
        norm: "l2".
        steps: gradient steps.
        init_eps: first radius of the sphere, in pixel units.
        gamma: by what share the radius changes per step.
        targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" compiles forward, loss and backward.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "ddn"
    norms = ("l2",)
    minimal = True

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float | Tensor | None = None,
        norm: str = "l2",
        steps: int = 100,
        init_eps: float = 1.0,
        gamma: float = 0.05,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            model, norm=norm, eps=eps, loss="ce", targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        self.steps = whole_number("steps", steps)
        if not 0 < init_eps < float("inf"):
            raise ValueError(f"init_eps is {init_eps}, expected a radius above 0")
        if not 0 < gamma < 1:
            raise ValueError(f"gamma is {gamma}, expected a share between 0 and 1")
        self.init_eps = init_eps
        self.gamma = gamma
        self._graph = GraphedLoop(model, self._search, warn=engine == "auto", writes=("best", "peaks"))

    def _run(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None) -> Tensor:
        lo, hi = self.bounds
        fallback = normal(index, tuple(x.shape[1:]), seed=self._key(epoch), dtype=x.dtype)
        # Farther than this no point of the box can be.
        farthest = distance(torch.maximum(x - lo, hi - x), torch.zeros_like(x))
        buffers = {
            "x": x,
            "target": y,
            "here": x.clone() if start is None else start.clone(),
            "fallback": fallback / by_row(distance(fallback, torch.zeros_like(x)), x),
            "farthest": farthest,
            "best": x.clone(),
            "peaks": x.new_empty(self.steps, len(x)),
        }
        self._run_loop(self._graph, buffers)
        self._log.add(buffers["peaks"])
        return give_up_beyond(self.eps, buffers["best"], x, self.norm)

    def _search(
        self,
        x: Tensor,
        target: Tensor,
        here: Tensor,
        fallback: Tensor,
        farthest: Tensor,
        best: Tensor,
        peaks: Tensor,
    ) -> None:
        """All steps; `best` gets the nearest adversarial images, and stays where there is none."""
        lo, hi = self.bounds
        zero = torch.zeros_like(x)
        nearest = farthest.clone()
        radius = torch.full_like(farthest, self.init_eps)
        delta = here - x
        for step in range(self.steps):
            found = self._gradient.evaluate(here, target)
            largest_entry(found.grad, out=peaks[step])
            won = self._fooled(found.logits, target) & ~found.logits.isnan().any(1)

            length = distance(delta, zero)
            nearer = won & (length <= nearest)
            torch.where(nearer, length, nearest, out=nearest)
            torch.where(by_row(nearer, x), here, best, out=best)

            grad = -found.grad if self.targeted else found.grad
            scale = distance(grad, zero)
            usable = by_row((scale > 0) & scale.isfinite(), x)
            direction = torch.where(usable, grad / by_row(scale, x), fallback)
            along = step / self.steps
            delta = delta + direction * (
                LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 + math.cos(math.pi * along)) / 2
            )
            radius = torch.where(won, radius * (1 - self.gamma), radius * (1 + self.gamma))
            radius = torch.minimum(radius, farthest)
            length = distance(delta, zero)
            factor = torch.where(length > 0, radius / length, 0)
            here = (x + delta * by_row(factor, x)).clamp(lo, hi)
            delta = here - x
