"""DeepFool: steps to the nearest boundary of the model's linear approximation, until one is crossed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.losses import loss_function
from robustfast.attacks.nearest import by_row, give_up_beyond

__all__ = ["DeepFool"]

# Steps between two looks at who is left: most samples need two to five.
BLOCK = 2
TINY = 1e-8


class DeepFool(Attack):
    """DeepFool, Moosavi-Dezfooli et al. 2016 (arXiv:1511.04599), algorithm 2 and its linf form, with Foolbox's details.

    Where the label's logit is the largest, each step goes to the nearest of the boundaries z_k = z_y of the model
    linearised at the current point, k running over the `candidates` - 1 other classes with the largest logits at x.
    All steps r_i are added up and overshot together: the next point is clip(x + (1 + overshoot) * sum r_i). A sample
    that is misclassified stays where it is, and leaves later passes.

    Implementations differ:

    * Foolbox (`L2DeepFoolAttack`, `LinfDeepFoolAttack`) is this one with ``keep_failed=True``: it returns the last
      point of a sample also where that is not misclassified; here x itself by default. It runs a forward pass for
      each candidate, here all gradients come from one.
    * torchattacks (`DeepFool`, l2 alone) is ``candidates=None, cumulative=False, nudge=0, keep_failed=True``: all
      classes, and each step, overshot on its own, goes on from the clipped image. So does adv_lib, with
      ``nudge=1e-4``; it returns x where it fails.
    * The authors' code is cumulative, without clipping, and adds the same 1e-4.

    The paper has no targeted form. With ``targeted=True`` each step goes to the boundary between the wanted class and
    the strongest other one at the current point, until the wanted class is reached.

    Args:
        model: see `Attack`.
        eps: None returns what was found; a radius gives x itself where that lies farther.
        norm: "l2" or "linf": in which the nearest boundary is meant.
        steps: at most so many.
        candidates: classes looked at, the label's among them; None: all.
        overshoot: by what share a step goes beyond the boundary.
        nudge: added to each step's length before that, in pixel units, against standing still at a boundary.
        cumulative: overshoot the sum of all steps from x, not each one from the current image.
        keep_failed: return the last point, not x, of a sample that was not misclassified.
        targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly. There are no draws.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "deepfool"
    norms = ("linf", "l2")
    minimal = True

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float | Tensor | None = None,
        norm: str = "l2",
        steps: int = 50,
        candidates: int | None = 10,
        overshoot: float = 0.02,
        nudge: float = 1e-4,
        cumulative: bool = True,
        keep_failed: bool = False,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            model, norm=norm, eps=eps, loss="margin", targeted=targeted, bounds=bounds, batch_norm=batch_norm,
            seed=seed, engine=engine,
        )  # fmt: skip
        self.steps = whole_number("steps", steps)
        self.candidates = None if candidates is None else whole_number("candidates", candidates, 2)
        for setting, value in (("overshoot", overshoot), ("nudge", nudge)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{setting} is {value}, expected a number >= 0")
        self.overshoot = overshoot
        self.nudge = nudge
        self.cumulative = cumulative
        self.keep_failed = keep_failed
        self._margin = loss_function("margin")
        self._writes = ("here", "total", "fooled")
        self._graph = GraphedLoop(model, self._cross, warn=engine == "auto", writes=(*self._writes, "peaks"))

    def _run(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None) -> Tensor:
        here = x.clone() if start is None else start.clone()
        classes = self._rivals(self._gradient.logits(x), y)
        state = {
            "x": x,
            "target": y,
            "here": here,
            "total": (here - x) / (1 + self.overshoot),
            "classes": classes,
            "fooled": torch.zeros_like(y, dtype=torch.bool),
        }
        for first in range(0, self.steps, BLOCK):
            rows, part = None, dict(state)
            if first:
                left = remaining(state["fooled"], static=self._uses_graph(x, self._graph))
                if not left.count:
                    break
                if left.count < len(x):
                    rows, part = left.rows, left.take(state)
            steps = min(BLOCK, self.steps - first)
            part["peaks"] = part["x"].new_empty(steps, len(part["x"]))
            self._run_loop(self._graph, part, steps=steps)
            self._log.add(part["peaks"], rows)
            if rows is not None:
                left.put(state, part, self._writes)
        found = state["here"]
        if not self.keep_failed:
            found = torch.where(by_row(self._won(self._gradient.logits(found), y), x), found, x)
        return give_up_beyond(self.eps, found, x, self.norm)

    def _rivals(self, logits: Tensor, target: Tensor) -> Tensor:
        """The other classes to look at, int64 [B, n], the largest logit at x first."""
        classes = logits.shape[1]
        known = target.clamp(0, classes - 1)[:, None]
        count = min(classes, self.candidates or classes) - 1
        return logits.scatter(1, known, -torch.inf).topk(count, dim=1).indices

    def _cross(
        self,
        x: Tensor,
        target: Tensor,
        here: Tensor,
        total: Tensor,
        classes: Tensor,
        fooled: Tensor,
        peaks: Tensor,
        *,
        steps: int,
    ) -> None:
        """Steps in place on `here`, on `total`, the sum of all steps so far, and on `fooled`."""
        lo, hi = self.bounds
        for step in range(steps):
            leaf = here.detach().requires_grad_()
            logits = self._gradient.forward(leaf)
            fooled |= self._won(logits.detach(), target)
            if self.targeted:
                gaps = [-self._margin(logits, target)]
            else:
                own = logits.gather(1, target.clamp(0, logits.shape[1] - 1)[:, None])
                gaps = list((logits.gather(1, classes) - own).unbind(1))
            nearest = torch.full_like(x[:, 0].flatten(1)[:, 0], torch.inf)
            along = torch.zeros_like(x)
            peak = torch.zeros_like(nearest)
            largest = torch.empty_like(nearest)
            for k, gap in enumerate(gaps):
                grad = self._gradient.gradient_of(gap, leaf, keep_graph=k + 1 < len(gaps))
                largest_entry(grad, out=largest)
                # Zero only where all of them are; nan and infinity stay.
                torch.maximum(peak, largest, out=peak)
                length = self._dual_length(grad)
                away = gap.detach().to(x.dtype).abs() / (length + TINY)
                # A class that no gradient leads to is out of reach; nan compares as not nearer.
                nearer = (away < nearest) & length.isfinite() & (length > 0)
                torch.where(nearer, away, nearest, out=nearest)
                torch.where(by_row(nearer, x), grad, along, out=along)
            peaks[step].copy_(peak)
            far = torch.where(nearest.isfinite(), nearest + self.nudge, 0)
            if self.norm == "linf":
                move = by_row(far, x) * along.sign()
            else:
                move = by_row(far / (self._dual_length(along) + TINY), x) * along
            total += torch.where(by_row(fooled, x), 0, move)
            if self.cumulative:
                there = x + (1 + self.overshoot) * total
            else:
                there = here + (1 + self.overshoot) * move
            # nan: infinite steps in opposite directions, from logits near the end of the range.
            torch.where(by_row(fooled, x) | there.isnan(), here, there.clamp(lo, hi), out=here)

    def _won(self, logits: Tensor, target: Tensor) -> Tensor:
        # argmax takes nan for the largest; that is no class the model chose.
        return self._fooled(logits, target) & ~logits.isnan().any(1)

    def _dual_length(self, grad: Tensor) -> Tensor:
        """How fast the gap closes per length of a step in `norm`."""
        order = 1 if self.norm == "linf" else 2
        return torch.linalg.vector_norm(grad, order, dim=tuple(range(1, grad.dim())))
