"""Carlini and Wagner's l2 attack: the nearest adversarial image, by Adam in a space without walls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.adam import adam_step
from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.losses import loss_function
from robustfast.attacks.nearest import by_row, distance, give_up_beyond

__all__ = ["CarliniWagner"]

# atanh of a pixel at the wall of the box is infinite, and its gradient zero: torchattacks cannot move binary images.
# Foolbox, cleverhans and adv_lib pull the box in by this much.
SHRINK = 1 - 1e-6
CHECKS = 10
PROGRESS = 0.9999
NO_BOUND = 1e10


class CarliniWagner(Attack):
    """The l2 attack of Carlini and Wagner 2017 (arXiv:1608.04644), section VI.A, with Foolbox's details.

    Images are written as x(w) = middle + half * tanh(w). For each of `search_steps` values of c, Adam minimises

        |x(w) - x|_2^2 + c * max(gap + confidence, 0),

    gap being the logit of the label minus the largest other one (the reverse when targeted), from w of x itself. The
    nearest image that is adversarial by at least `confidence` is kept over all steps and all c. c is halved between
    its bounds where an adversarial image was found and multiplied by ten where none was yet, sample by sample.

    Implementations differ:

    * Foolbox (`L2CarliniWagnerAttack`) is this one, but for two things. It stops Adam when the loss summed over the
      batch no longer falls, so that its result depends on the batch; here each sample stops by its own loss, which is
      Foolbox's rule for a batch of one. And where it finds nothing it returns black images; here x itself.
    * adv_lib stops once no sample's loss falls, and records an image before it looks at the loss; the authors' code
      stops by the summed loss too.
    * torchattacks (`CW`) has no search: ``search_steps=1, c=1, steps=50`` here. It also stops by the summed loss,
      where that rises; it counts an image without its `kappa` as found; it takes the maximum of the other logits and
      zero for the largest other one, and the same of the label's, so that negative logits do not count; and it does
      not shrink the box, so that pixels at 0 and 1 are not moved at all.
    * The paper runs 10,000 steps for each of up to 20 values of c, Foolbox 10,000 for each of 9.

    Args:
        model: see `Attack`.
        eps: None returns the nearest image that was found; a radius gives x itself where that lies farther.
        norm: "l2".
        steps: of Adam for each c.
        step_size: of Adam, in the units of w.
        search_steps: values of c that are tried.
        c: the first of them.
        confidence: by how much the wanted logit must lead.
        abort_early: end a sample's descent, for this c, once a tenth of the steps lowered its loss by less than 1e-4
            of it. Samples that ended are left out of later passes.
        targeted, bounds, batch_norm, seed, engine: see `Attack`. "compile" runs eagerly. There are no draws.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "cw-l2"
    norms = ("l2",)
    minimal = True

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float | Tensor | None = None,
        norm: str = "l2",
        steps: int = 1000,
        step_size: float = 0.01,
        search_steps: int = 9,
        c: float = 1e-3,
        confidence: float = 0.0,
        abort_early: bool = True,
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
        self.search_steps = whole_number("search_steps", search_steps)
        for setting, value in (("step_size", step_size), ("c", c)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{setting} is {value}, expected a number above 0")
        if not 0 <= confidence < float("inf"):
            raise ValueError(f"confidence is {confidence}, expected a difference of logits >= 0")
        self.step_size = step_size
        self.c = c
        self.confidence = confidence
        self.abort_early = abort_early
        self._margin = loss_function("margin")
        self._writes = ("delta", "mean", "square", "found", "stopped", "checked", "best", "nearest", "peaks")
        self._graph = GraphedLoop(
            model, self._descend, warn=engine == "auto", writes=(*self._writes, "count")
        )

    def _run(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None) -> Tensor:
        origin = self._to_space(x)
        first = torch.zeros_like(x) if start is None else self._to_space(start) - origin
        rows = {"dtype": x.dtype, "device": x.device}
        c = torch.full((len(x),), self.c, **rows)
        lower, upper = torch.zeros_like(c), torch.full_like(c, torch.inf)
        state = {
            "x": x,
            "target": y,
            "origin": origin,
            "c": c,
            "best": x.clone(),
            "nearest": torch.full_like(c, torch.inf),
        }
        for search in range(self.search_steps):
            if search == self.search_steps - 1 and search >= 9:
                # As the authors' code: a long search ends at the smallest c known to work.
                state["c"] = upper.clamp(max=NO_BOUND)
            state |= {
                "delta": first.clone(),
                "mean": torch.zeros_like(x),
                "square": torch.zeros_like(x),
                "found": torch.zeros_like(y, dtype=torch.bool),
                "stopped": torch.zeros_like(y, dtype=torch.bool),
                "checked": torch.full_like(c, torch.inf),
            }
            self._minimise(state)
            c, found = state["c"], state["found"]
            upper, lower = torch.where(found, c, upper), torch.where(found, lower, c)
            state["c"] = torch.where(upper.isinf(), c * 10, (lower + upper) / 2)
        return give_up_beyond(self.eps, state["best"], x, self.norm)

    def _minimise(self, state: dict[str, Tensor]) -> None:
        """All steps at one c, in place on the state, in blocks between which samples that ended are left out."""
        block = -(-self.steps // CHECKS)
        count = torch.zeros((), dtype=torch.float64, device=state["x"].device)
        for first in range(0, self.steps, block):
            rows, part = None, dict(state)
            if self.abort_early and first:
                left = remaining(state["stopped"], static=self._uses_graph(state["x"], self._graph))
                if not left.count:
                    return
                if left.count < len(state["x"]):
                    rows, part = left.rows, left.take(state)
            steps = min(block, self.steps - first)
            part |= {"peaks": part["x"].new_empty(len(part["x"]), steps), "count": count}
            self._run_loop(self._graph, part, steps=steps)
            self._log.add(part["peaks"].t(), rows)
            if rows is not None:
                left.put(state, part, [name for name in self._writes if name != "peaks"])

    def _descend(
        self,
        x: Tensor,
        target: Tensor,
        origin: Tensor,
        c: Tensor,
        best: Tensor,
        nearest: Tensor,
        delta: Tensor,
        mean: Tensor,
        square: Tensor,
        found: Tensor,
        stopped: Tensor,
        checked: Tensor,
        peaks: Tensor,
        count: Tensor,
        *,
        steps: int,
    ) -> None:
        """Steps from `delta` in place; progress is checked at the first of them."""
        sign = 1.0 if self.targeted else -1.0
        half = (self.bounds[1] - self.bounds[0]) / 2
        anchor, _ = self._to_images(origin)
        for step in range(steps):
            images, tanh = self._to_images(origin + delta)
            leaf = images.detach().requires_grad_()
            logits = self._gradient.forward(leaf)
            gap = sign * self._margin(logits, target) + self.confidence
            grad = self._gradient.gradient_of(gap, leaf)
            largest_entry(grad, out=peaks[:, step])
            gap, away = gap.detach().to(x.dtype), images - anchor
            loss = c * gap.clamp(min=0) + away.flatten(1).square().sum(1)
            # Of the loss by the images, then by w: d tanh = 1 - tanh^2.
            grad = torch.where(by_row(gap > 0, x), grad * by_row(c, x), 0) + 2 * away
            adam_step(delta, grad * (half * (1 - tanh * tanh)), mean, square, count, step_size=self.step_size)
            if self.abort_early and step == 0:
                # Written so that nan stops too.
                stopped |= ~(loss <= PROGRESS * checked)
                torch.where(stopped, checked, loss, out=checked)
            won = self._won(logits.detach(), target) & ~stopped
            found |= won
            length = distance(images, x)
            won = won & (length < nearest)
            torch.where(won, length, nearest, out=nearest)
            torch.where(by_row(won, x), images, best, out=best)

    def _won(self, logits: Tensor, target: Tensor) -> Tensor:
        """Which samples [B] are adversarial with `confidence` to spare."""
        if self.confidence:
            known = target.clamp(0, logits.shape[1] - 1)[:, None]
            lead = torch.full_like(known, -1 if self.targeted else 1, dtype=logits.dtype) * self.confidence
            logits = logits.scatter_add(1, known, lead)
        # argmax takes nan for the largest; that is no class the model chose.
        return self._fooled(logits, target) & ~logits.isnan().any(1)

    def _to_space(self, images: Tensor) -> Tensor:
        lo, hi = self.bounds
        return ((images - (lo + hi) / 2) / ((hi - lo) / 2)).mul_(SHRINK).clamp_(-SHRINK, SHRINK).atanh_()

    def _to_images(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Images at w, and tanh(w)."""
        lo, hi = self.bounds
        tanh = w.tanh()
        return (tanh * ((hi - lo) / 2) + (lo + hi) / 2).clamp_(lo, hi), tanh
