"""FAB: from projection to projection onto the linearised boundary, held close to the original image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.draws import normal, uniform
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.losses import loss_function
from robustfast.attacks.nearest import by_row, distance, give_up_beyond
from robustfast.ops import fab_projection

__all__ = ["FAB"]

# Steps of one graph, and between two looks at who is left under early_stop.
BLOCK = 10
# Radius that restarts are drawn from where no eps is given: the defaults of the authors' code.
RADIUS = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
# Of the authors' code: no division by zero for a model without slope, or for a point on the hyperplane.
TINY_SLOPE, TINY_STEP = 1e-12, 1e-8


class FAB(Attack):
    """Fast adaptive boundary attack, Croce and Hein 2020 (arXiv:1907.02044), algorithm 1, as AutoAttack has it.

    Looks for the nearest adversarial image. Each step linearises the model at the current point, takes the class k
    whose boundary z_k = z_y is nearest in the dual norm, and projects both the point and the original image x onto
    that hyperplane within the box (`robustfast.ops.fab_projection`). The next point lies eta = 1.05 times as far as
    both projections, by a share alpha <= alpha_max (equation 9) towards that of x, clipped. Where it is adversarial it
    is kept if nearer to x than those before, and the search goes on from x + beta (point - x).

    Differences between implementations:

    * The authors' later code in AutoAttack (`FABAttack_PT`) and torchattacks' copy of it (`FAB`) are this one, step by
      step. There is no final search on the line to x (section 3.4 of the paper) in either, and none here.
    * With `eps` they return only what lies within it, and do not attack such a sample again in further restarts; so
      here. Where nothing lies within eps they and this attack return x. With ``eps=None`` they take a default radius;
      here the nearest image of all restarts is returned.
    * torchattacks' ``norm="L1"`` raises a NameError at the end of each restart; its targeted mode attacks the samples
      that are of the wanted class already. Here ``targeted=True`` goes to the boundary between y and the strongest
      other class, until the model says y; the paper has no such form. Its targeted attack, "FAB-T", is `FABT`.
    * Restarts draw from their own generator keyed by seed and index, not from the global one, which both reseed.
    * Both take |w| <= 1e-8 for zero in the l2 and l1 projections, and sort: see `fab_projection`.

    Model passes: per step one forward and K - 1 backward passes (`gradient_of` of each z_k - z_y on one graph), and one
    forward pass for the class of the new point. Theirs are one and K, of the weights too, and one; and 3 forward passes
    per restart that are not repeated here. The class check cannot serve as the next step's gradient pass: a point that
    is adversarial, as every second one or so is, moves back by beta first.

    Args:
        model: see `Attack`.
        norm: "linf", "l2" or "l1".
        eps: radius within which an image counts, float or tensor [] or [B]; None: return the nearest found.
        steps: per restart.
        restarts: the first from x, the others from random points at eps / 2.
        alpha_max: largest share of the projection of x.
        eta: overshoot beyond the hyperplane.
        beta: how much of the way from x is left after an adversarial point.
        targeted: see above; y holds the wanted labels.
        early_stop: leave a sample out, in blocks of ten steps, once what was found lies within eps: the same samples
            are fooled, by images that are less near. Nothing without eps.
        bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "fab"
    minimal = True

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor | None = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        targeted: bool = False,
        early_stop: bool = False,
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
        self.restarts = whole_number("restarts", restarts)
        for setting, value in (("alpha_max", alpha_max), ("beta", beta)):
            if not 0 <= value <= 1:
                raise ValueError(f"{setting} is {value}, expected a share in [0, 1]")
        if not 1 <= eta < float("inf"):
            raise ValueError(f"eta is {eta}, expected an overshoot >= 1")
        self.alpha_max = alpha_max
        self.eta = eta
        self.beta = beta
        self.early_stop = early_stop
        self._margin = loss_function("margin")
        self._writes = ("here", "best", "nearest")
        self._graph = GraphedLoop(model, self._search, warn=engine == "auto", writes=(*self._writes, "peaks"))

    def _run(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None) -> Tensor:
        leaf = x.detach().requires_grad_()
        logits = self._gradient.forward(leaf)
        if not logits.requires_grad:
            # Refused also where every sample is misclassified, and no gradient would be taken.
            self._gradient.gradient_of(logits, leaf)
        logits = logits.detach()
        label = y.clamp(0, logits.shape[1] - 1)
        nearest = torch.full_like(x.flatten(1)[:, 0], torch.inf)
        radius = RADIUS[self.norm] if self.eps is None else self.eps
        state = {
            "x": x,
            "target": label,
            "goal": label,
            "index": index,
            "radius": torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand_as(nearest),
            "here": x,
            "best": x.clone(),
            "nearest": nearest,
        }
        # A class that nan logits chose is none to leave or to reach.
        settled = self._fooled(logits, label) | logits.isnan().any(1)
        for run, goal in enumerate(self._goals(logits, label)):
            state["goal"] = goal
            for restart in range(self.restarts):
                state["here"] = x.clone() if start is None else start.clone()
                self._restart(state, settled, self._key(epoch, run, restart) if restart else None)
        return give_up_beyond(self.eps, state["best"], x, self.norm)

    def _restart(self, state: dict[str, Tensor], settled: Tensor, key: int | None) -> None:
        """All steps from one start, drawn by `key`, of the samples neither settled nor found within eps."""
        for first in range(0, self.steps, BLOCK):
            if not first or (self.early_stop and self.eps is not None):
                done = settled if self.eps is None else settled | (state["nearest"] <= state["radius"])
                left = remaining(done, static=self._uses_graph(state["x"], self._graph))
                if not left.count:
                    return
                part = left.take(state)
                index, radius = part.pop("index"), part.pop("radius")
                if not first and key is not None:
                    part["here"] = self._random_start(part["x"], radius, index, key)
            steps = min(BLOCK, self.steps - first)
            part["peaks"] = part["x"].new_empty(len(left.rows), steps)
            self._run_loop(self._graph, part, steps=steps)
            self._log.add(part["peaks"].t(), left.rows)
            left.put(state, part, self._writes)

    def _random_start(self, x: Tensor, radius: Tensor, index: Tensor, key: int) -> Tensor:
        """A point at half the radius from x, in a direction that is uniform in the cube (linf) or normal, clipped."""
        draw, shape = uniform if self.norm == "linf" else normal, tuple(x.shape[1:])
        direction = torch.empty_like(x).copy_(draw(index, shape, seed=key, dtype=x.dtype))
        if self.norm == "linf":
            direction = 2 * direction - 1
        scale = radius / distance(direction, torch.zeros_like(x), self.norm) * 0.5
        return (x + direction * by_row(scale, x)).clamp(*self.bounds)

    def _goals(self, logits: Tensor, label: Tensor) -> list[Tensor]:
        """The classes int64 [B] to run at, one after the other; `label` where a step finds its class itself."""
        return [label]

    def _gaps(self, logits: Tensor, target: Tensor, goal: Tensor) -> list[Tensor]:
        """Differences of logits [B] that are zero on a boundary; below it on the side of x."""
        if self.targeted:
            return [-self._margin(logits, target)]
        others = torch.arange(logits.shape[1] - 1, device=target.device)
        others = others + (others >= target[:, None])
        return list((logits.gather(1, others) - logits.gather(1, target[:, None])).unbind(1))

    def _search(
        self,
        x: Tensor,
        target: Tensor,
        goal: Tensor,
        here: Tensor,
        best: Tensor,
        nearest: Tensor,
        peaks: Tensor,
        *,
        steps: int,
    ) -> None:
        """Steps in place on `here`; `best` gets adversarial images nearer than `nearest` [B], which follows."""
        lo, hi = self.bounds
        both = torch.cat([here, x])
        point, move = both[: len(x)], torch.empty_like(both)
        length, away = torch.empty_like(both.flatten(1)[:, 0]), torch.empty_like(nearest)
        for step in range(steps):
            leaf = point.detach().requires_grad_()
            gap, normal = self._hyperplane(leaf, target, goal, peaks[:, step])
            offset = (normal * point).flatten(1).sum(1) - gap
            fab_projection(both, normal, offset, norm=self.norm, bounds=self.bounds, out=move)
            self._lengths(move, out=length)
            length.clamp_(min=TINY_STEP)
            to_point, to_x = length[: len(x)], length[len(x) :]
            alpha = by_row((to_point / (to_point + to_x)).clamp(max=self.alpha_max), x)
            overshot = both + self.eta * move
            new = (overshot[: len(x)] * (1 - alpha) + overshot[len(x) :] * alpha).clamp_(lo, hi)

            logits = self._gradient.logits(new)
            won = self._fooled(logits, target) & ~logits.isnan().any(1)
            self._lengths(new - x, out=away)
            nearer = won & (away < nearest)
            torch.where(nearer, away, nearest, out=nearest)
            torch.where(by_row(nearer, x), new, best, out=best)
            torch.where(by_row(won, x), x + (new - x) * self.beta, new, out=point)
        here.copy_(point)

    def _lengths(self, move: Tensor, *, out: Tensor) -> None:
        """Length [B] of each sample of `move` in the attack's norm."""
        if self.norm == "linf":
            largest_entry(move, out=out)
        else:
            torch.linalg.vector_norm(
                move, 2 if self.norm == "l2" else 1, dim=tuple(range(1, move.dim())), out=out
            )

    def _hyperplane(self, leaf: Tensor, target: Tensor, goal: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
        """Gap [B] and gradient [B, ...] of the nearest boundary; `peak` [B] gets the largest gradient entries."""
        gaps = self._gaps(self._gradient.forward(leaf), target, goal)
        order = 1 if self.norm == "linf" else 2  # the dual norm; that of l1 is the largest entry
        dims = tuple(range(1, leaf.dim()))
        largest = torch.empty_like(peak)
        closest = torch.full_like(peak, torch.inf)
        chosen, normal = torch.zeros_like(peak), torch.zeros_like(leaf)
        peak.zero_()
        for k, gap in enumerate(gaps):
            grad = self._gradient.gradient_of(gap, leaf, keep_graph=k + 1 < len(gaps))
            gap = gap.detach().to(leaf.dtype)
            largest_entry(grad, out=largest)
            # Zero only where all of them are; nan and infinity stay.
            peak.copy_(torch.maximum(peak, largest))
            slope = largest if self.norm == "l1" else torch.linalg.vector_norm(grad, order, dim=dims)
            away = gap.abs() / (TINY_SLOPE + slope)
            nearer = away < closest  # nan never is
            closest = torch.where(nearer, away, closest)
            chosen = torch.where(nearer, gap, chosen)
            normal = torch.where(by_row(nearer, leaf), grad, normal)
        return chosen, normal
