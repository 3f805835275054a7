"""APGD: projected gradient ascent that sets its own step size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.apgd_schedule import phases, windows
from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import Remaining, remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop, loops_are_eager
from robustfast.attacks.draws import normal, uniform
from robustfast.attacks.gradient import InputGradient, largest_entry
from robustfast.attacks.losses import Loss, loss_function
from robustfast.ops import apgd_step, apgd_track
from robustfast.ops.l1_projection import l1_projection

__all__ = ["APGD"]

RETURNS = ("success_only", "max_loss")

# Steps between two looks at who is left, where early_stop asks for them. On a GPU a look waits for the device.
_BLOCK = 5

# What a run carries from step to step, beside the two iterates: what the ops write.
_STATE = (
    "x_adv", "x_old", "grad", "x_best", "grad_best", "loss_best", "x_fooled", "fooled", "loss_last", "increases",
    "loss_checked", "reduced", "step_size",
)  # fmt: skip


class APGD(Attack):
    """Auto-PGD of Croce and Hein 2020 (arXiv:2003.01690), algorithm 1; under l1 that of 2021 (arXiv:2103.01208).

    Steepest ascent with momentum, in steps that begin at 2 eps (l1: eps). At checks which grow more frequent, each
    sample that no longer gains halves its step and goes back to its best point. See `robustfast.ops.apgd_step` for
    the step and `robustfast.ops.apgd_track` for the checks.

    Paper, the authors' code and torchattacks differ, and here it is the code's way:

    * Checks come after int(0.22 steps), int(0.03 steps) sooner each time, int(0.06 steps) at the least; the paper
      rounds up. Both are the same at 100 steps.
    * The first step counts as a rise where its loss is positive: the code compares it with zero, not with the start's.
    * A sample that goes back to its best point keeps the iterate before it, so its next momentum points from there.
    * Samples misclassified as they are stay as they are (`returns` "success_only").
    * With `eot`, loss and prediction are those of the last of the averaged passes.

    Elsewhere both go astray, and are not followed: torchattacks' targeted l2 attack steps every sample by the first
    one's step size; both start from the global random state by batch position; the code's l1 attack counts
    residues of rounding, x + u - u != x, as entries that moved, here an entry has moved if its pixel has.

    The start is x + eps t / max|t| with t uniform in [-1, 1] under linf, x + eps t / |t|_2 with t normal under l2, and
    under l1 the projection of x + t, t normal, onto the ball of 3 eps within the box: the l1 attack spends 0.3 of its
    steps in that ball, 0.3 in that of 2 eps and the rest in its own, from the best point of each in the next, as
    AutoAttack runs it. Restarts take samples that no run has won.

    A run takes `steps` + 1 gradients (l1: + 3), each `eot` times; "success_only" and `early_stop` look at the clean
    images once more.

    Args:
        model: images [B, ...] -> logits [B, K].
        eps: radius of the ball in pixel units; float, or a tensor [] or [B] of the images' dtype.
        norm: "linf", "l2" or "l1".
        steps: gradient steps of each run.
        restarts: runs from independent starts.
        loss: "ce", "dlr", "margin" or a function (logits, labels) -> [B].
        rho: a window in which at most this share of the steps raised the loss halves the step (not under l1).
        eot: passes whose gradients are averaged in each step, for models that draw at random (Athalye et al. 2018,
            arXiv:1802.00420).
        targeted: descend the loss towards y, until y is what the model says. (AutoAttack's targeted losses keep the
            true label and count any other class.)
        returns: "success_only": of each sample the last misclassified iterate, x where there was none. "max_loss": the
            iterate of the highest loss, misclassified or not, of all runs.
        early_stop: samples that are fooled leave, between blocks of five steps, with the last misclassified iterate of
            their block. The same samples are fooled as without.
        bounds, batch_norm, seed, engine: as of every `Attack`.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "apgd"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float | Tensor = 8 / 255,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
        loss: str | Loss = "ce",
        rho: float = 0.75,
        eot: int = 1,
        targeted: bool = False,
        returns: str = "success_only",
        early_stop: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if loss == "kl":
            raise ValueError(f"{self.name} needs labels to tell who is fooled, loss 'kl' takes probabilities")
        super().__init__(
            model, norm=norm, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        if not 0 <= rho <= 1:
            raise ValueError(f"rho is {rho}, expected a share of the steps in [0, 1]")
        if returns not in RETURNS:
            raise ValueError(f"returns is {returns!r}, expected one of {', '.join(RETURNS)}")
        self.steps = whole_number("steps", steps)
        self.restarts = whole_number("restarts", restarts)
        self.rho = rho
        self.eot = whole_number("eot", eot)
        self.returns = returns
        self.early_stop = early_stop
        self._gradient = InputGradient(model, self._forward(), self._ascended(), compiled=engine == "compile")
        writes = (*_STATE, "peaks", *(("sparsity", "moved") if norm == "l1" else ()))
        self._graph = GraphedLoop(model, self._climb, warn=engine == "auto", writes=writes)

    def __repr__(self) -> str:
        shown = (
            "norm",
            "eps",
            "steps",
            "restarts",
            "loss",
            "eot",
            "targeted",
            "returns",
            "early_stop",
            "seed",
        )
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    # What APGD and its targeted form differ in.

    def _ascended(self) -> Loss:
        """The loss to climb: (logits, a goal of `_goals`) -> [B]."""
        per_sample = loss_function(self.loss)
        if not self.targeted:
            return per_sample
        return lambda logits, target: -per_sample(logits, target)

    def _goals(self, x: Tensor, y: Tensor, logits: Tensor | None) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """(key of the draws, goal [B, ...]) of each run; `logits` are those of `x`, where `_looks` asked for them."""
        for restart in range(self.restarts):
            yield (restart,), y

    def _looks(self) -> bool:
        """Whether the logits of the clean images are needed."""
        return self.returns == "success_only" or self.early_stop

    # One call.

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        if y.dim() != 1 or y.dtype != torch.int64:
            raise ValueError(f"y is {y.dtype} {tuple(y.shape)}, expected labels int64 [{len(x)}]")
        if start is not None and self.restarts > 1:
            raise ValueError(
                f"start was given, but restarts is {self.restarts}: every one would find the same"
            )
        logits = self._gradient.logits(x) if self._looks() else None
        everyone = {"x": x, "y": y, "eps": _rows(self.eps, x), "index": index}
        if start is not None:
            everyone["start"] = start
        won = torch.zeros_like(y, dtype=torch.bool) if logits is None else self._fooled(logits, y)
        found = {"images": x.clone(memory_format=torch.preserve_format), "won": won}
        if self.returns == "max_loss":
            found["loss"] = torch.full_like(everyone["eps"], -torch.inf)
        for key, goal in self._goals(x, y, logits):
            left = self._left(found["won"], x)
            if not left.count:
                if not any(key):
                    # Nobody was attacked at all: that must not hide a model without gradients.
                    self._evaluate(x, goal)
                break
            self._once({**everyone, "goal": goal}, found, left, self._key(epoch, *key))
        return found["images"]

    def _once(
        self, everyone: Mapping[str, Tensor], found: dict[str, Tensor], left: Remaining, seed: int
    ) -> None:
        """One run of the samples that are left; what it finds goes into `found`."""
        part = left.take(everyone)
        eps, index = part.pop("eps"), part.pop("index")
        x_adv = part.pop("start") if "start" in part else self._start(part["x"], eps, index, seed)
        balls = phases(self.steps, self.norm)
        for radius, steps in balls:
            state = self._begin(part, x_adv, radius * eps, left.rows)
            last = (radius, steps) == balls[-1]
            block = _BLOCK if self.early_stop and last else max(steps, 1)
            schedule = self._schedule(steps, x_adv)
            for first in range(0, steps, block):
                if self.early_stop and last:
                    left, state = self._leave(left, state, found)
                    if not left.count:
                        return
                self._advance(
                    state, {name: v[first : first + block] for name, v in schedule.items()}, left.rows
                )
            x_adv = state["x_best"]
        self._settle(left, state, found)

    def _start(self, x: Tensor, eps: Tensor, index: Tensor, seed: int) -> Tensor:
        draw = uniform if self.norm == "linf" else normal
        t = draw(index, x.shape[1:], seed=seed, dtype=x.dtype)
        if self.norm == "l1":
            return torch.empty_like(x).copy_(x + t)
        if self.norm == "linf":
            t = 2 * t - 1
        length = torch.linalg.vector_norm(
            t, torch.inf if self.norm == "linf" else 2, tuple(range(1, x.dim())), keepdim=True
        )
        # The layout of x, whatever the draws have.
        return torch.empty_like(x).copy_(x + _spread(eps, x) * (t / length.clamp_min(1e-12)))

    def _begin(
        self, part: Mapping[str, Tensor], x_adv: Tensor, eps: Tensor, rows: Tensor
    ) -> dict[str, Tensor]:
        """The state of a run in the ball of `eps` [n], after the gradient of its start."""
        x = part["x"]
        if self.norm == "l1":
            x_adv = l1_projection(x_adv, x, eps=eps, bounds=self.bounds)
        x_adv = x_adv.clamp(*self.bounds)
        grad, loss, logits = self._evaluate(x_adv, part["goal"])
        peaks = x.new_empty(len(x))
        largest_entry(grad, out=peaks)
        self._log.add(peaks, rows)
        loss = torch.where(loss.isnan(), -torch.inf, loss)
        state = {
            **part,
            "eps": eps,
            "x_adv": x_adv,
            "x_old": x_adv.clone(),
            "grad": grad,
            "x_best": x_adv.clone(),
            "grad_best": grad.clone(),
            "loss_best": loss,
            "x_fooled": x_adv.clone(),
            "fooled": self._fooled(logits, part["y"]),
            "loss_last": torch.zeros_like(loss),
            "increases": torch.zeros_like(part["y"]),
            "loss_checked": loss.clone(),
            "reduced": torch.ones_like(part["y"], dtype=torch.bool),
            "step_size": eps.clone() if self.norm == "l1" else 2 * eps,
        }
        if self.norm == "l1":
            moved = (x_adv != x).flatten(1).sum(1)
            # In float32 whatever the images are, as in the authors' code: the rounding decides how many entries move.
            state |= {"moved": moved, "sparsity": (moved.float() / x[0].numel() / 1.5).to(x.dtype)}
        return state

    def _schedule(self, steps: int, x: Tensor) -> dict[str, Tensor]:
        """What changes from step to step, for the loop to read on the device: one capture serves all blocks."""
        # By fills: what is copied from the host, a caller's CUDA graph would read there at every replay.
        momentum = x.new_full((steps,), 0.75)
        momentum[:1].fill_(1)
        since = torch.zeros(steps, dtype=torch.int64, device=x.device)
        for step, window in enumerate(windows(steps, self.norm)):
            if window:
                since[step].fill_(window)
        return {"windows": since, "momentum": momentum}

    def _advance(self, state: dict[str, Tensor], schedule: Mapping[str, Tensor], rows: Tensor) -> None:
        peaks = state["x"].new_empty(len(schedule["windows"]), len(rows))
        self._run_loop(self._graph, {**state, **schedule, "peaks": peaks})
        self._log.add(peaks, rows)

    def _climb(
        self,
        *,
        x_adv: Tensor,
        x_old: Tensor,
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        goal: Tensor,
        eps: Tensor,
        windows: Tensor,
        momentum: Tensor,
        peaks: Tensor,
        step_size: Tensor,
        **state: Tensor,
    ) -> None:
        """A block of steps, in place on what `_STATE` names; `peaks` [steps, B] gets each gradient's largest."""
        track = {"step_size": step_size, "rho": self.rho, "targeted": self.targeted, **state}
        step = {"step_size": step_size, "eps": eps, "norm": self.norm, "bounds": self.bounds}
        if self.norm == "l1":
            track |= {"x": x, "eps": eps}
            step["sparsity"] = state["sparsity"]
        here, before, direction = x_adv, x_old, grad
        for window, weight, peak in zip(windows.unbind(), momentum.unbind(), peaks.unbind(), strict=True):
            apgd_step(here, before, direction, x, momentum=weight, out=before, **step)
            here, before = before, here
            direction, loss, logits = self._evaluate(here, goal)
            largest_entry(direction, out=peak)
            apgd_track(here, direction, loss, logits, y, window=window, **track)
        grad.copy_(direction)
        if here is not x_adv:
            kept = here.clone()
            x_old.copy_(x_adv)
            x_adv.copy_(kept)

    def _evaluate(self, x_adv: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, mean of `eot` passes, in memory of its own laid out as `x_adv`; loss and logits of the last."""
        found = self._gradient.evaluate(x_adv, goal)
        grad = found.grad
        if grad.stride() != x_adv.stride():  # a gradient that is the same everywhere comes expanded
            grad = torch.empty_like(x_adv).copy_(grad)
        if self.eot > 1:
            for _ in range(self.eot - 1):
                found = self._gradient.evaluate(x_adv, goal)
                grad += found.grad
            grad /= self.eot
        loss = found.loss if found.loss.dtype in (torch.float32, torch.float64) else found.loss.float()
        return grad, loss, found.logits

    # Who is left, and what they found.

    def _left(self, won: Tensor, x: Tensor) -> Remaining:
        """The samples not won yet; all of them as a part of a larger graph, which cannot wait to know."""
        if loops_are_eager(x.device):
            return Remaining(torch.arange(len(x), device=x.device), len(x))
        return remaining(won, static=self._uses_graph(x, self._graph))

    def _leave(
        self, left: Remaining, state: dict[str, Tensor], found: dict[str, Tensor]
    ) -> tuple[Remaining, dict[str, Tensor]]:
        """Let the fooled ones go, with what they have; who is left then, and their state."""
        if loops_are_eager(state["x"].device):
            # Nobody can leave, but what comes after this block is not taken in.
            self._settle(left, state, found)
            return left, state
        rows = left.rows[: left.count]
        won = found["won"].index_copy(0, rows, found["won"][rows] | state["fooled"][: left.count])
        still = self._left(won, found["images"])
        if still.count == left.count:
            return left, state
        self._settle(left, state, found)
        place = torch.empty_like(won, dtype=torch.int64)
        place[rows] = torch.arange(left.count, device=rows.device)
        return still, Remaining(place[still.rows], still.count).take(state)

    def _settle(self, left: Remaining, state: Mapping[str, Tensor], found: dict[str, Tensor]) -> None:
        part = left.take(found)
        if self.returns == "max_loss":
            # A sample that was fooled in an earlier run has what it needs.
            better = (state["loss_best"] > part["loss"]) & ~part["won"]
            part["images"] = torch.where(_spread(better, state["x"]), state["x_best"], part["images"])
            part["loss"] = torch.where(better, state["loss_best"].to(part["loss"].dtype), part["loss"])
        if self._looks():
            newly = state["fooled"] & ~part["won"]
            part["images"] = torch.where(_spread(newly, state["x"]), state["x_fooled"], part["images"])
            part["won"] = part["won"] | newly
        left.put(found, part)


def _rows(value: float | Tensor, x: Tensor) -> Tensor:
    """eps as [B] of the images' dtype, so that it can leave with its sample."""
    if not isinstance(value, Tensor):
        return x.new_full(x.shape[:1], value)
    return value.to(x).expand(len(x)) if value.dim() == 0 else value


def _spread(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.dim() - 1))
