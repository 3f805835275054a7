"""SPSA: a gradient estimated from the model's outputs at random pairs of points, and Adam on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.adam import adam_step
from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.draws import signs
from robustfast.attacks.losses import Loss, loss_function
from robustfast.ops.sizes import per_sample

__all__ = ["SPSA"]

# Steps between two looks at who is left. One step asks the model 256 times, so a look each other step costs nothing.
_BLOCK = 2


class SPSA(Attack):
    """Simultaneous perturbation stochastic approximation: the model's outputs alone, no gradient.

    Uesato et al. 2018 (arXiv:1802.05666), algorithm 1 after Spall 1992: from x, `steps` times, the mean over `samples`
    random directions v of {-1, 1}^n of

        (loss(x + delta v) - loss(x - delta v)) / (2 delta) * v,

    one Adam step along it, then back into the ball and the box. The mean is the gradient of the loss smoothed at scale
    delta, in expectation; a gradient that is masked or shattered does not stop it. A step costs 2 * `samples` passes
    forward.

    Where implementations differ: advertorch and torchattacks (the same code) draw one direction for all images of a
    batch, and by default take a single step; here each image has directions of its own, keyed by (seed, epoch, step,
    direction) and by its `index`, and steps are 100. As there, points x +- delta v are not clipped to the box, Adam is
    at its default betas and keeps its averages where the ball stops it, and the result is the last iterate. With the
    same draws their trajectory is this one. A loss that is nan or infinite at one of a pair counts as no difference.

    With `early_stop` a sample stays where the model was first fooled, and leaves the batch: its queries are saved.

    Results do not depend on the batch, nor on `chunk`.

    Args:
        model: images [B, ...] -> logits [B, K].
        norm: "linf".
        eps: radius of the ball in pixel units; float, or a tensor [] or [B].
        delta: half the distance between the points of a pair, in pixel units.
        step_size: learning rate of Adam, about the length of a step in each pixel.
        steps: steps of Adam.
        samples: directions per step.
        chunk: directions at a time: a pass holds 2 * `chunk` * B images, and as many draws.
        loss: "margin", "ce", "dlr", or a function (logits, y) -> [B].
        early_stop: see above; costs one pass more per step.
        targeted: descend the loss towards y.
        bounds, batch_norm, seed, engine: as for `Attack`.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "spsa"
    norms = ("linf",)
    kind = "black-box"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        delta: float = 0.01,
        step_size: float = 0.01,
        steps: int = 100,
        samples: int = 128,
        chunk: int = 8,
        loss: str | Loss = "margin",
        early_stop: bool = False,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        for name, count in (("steps", steps), ("samples", samples), ("chunk", chunk)):
            whole_number(name, count)
        if steps * samples >= 2**30:
            raise ValueError(f"steps * samples is {steps * samples}, expected fewer than 2**30 draws")
        for name, size in (("delta", delta), ("step_size", step_size)):
            if not 0 < size < float("inf"):
                raise ValueError(f"{name} is {size}, expected a length above 0 in pixel units")
        super().__init__(
            model, norm=norm, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        self.delta = delta
        self.step_size = step_size
        self.steps = steps
        self.samples = samples
        self.chunk = chunk
        self.early_stop = early_stop
        self._per_sample = loss_function(loss)
        self._graph = GraphedLoop(
            model,
            self._climb,
            warn=engine == "auto",
            writes=("x_adv", "mean", "square", "count", "fooled", "peaks"),
        )

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        eps = per_sample(self.name, "eps", self.eps, x).to(x.device).expand(len(x)).contiguous()
        state = {"x": x, "y": y, "index": index, "eps": eps}
        state |= {"x_adv": torch.empty_like(x).copy_(x if start is None else start)}
        state |= {"mean": torch.zeros_like(x), "square": torch.zeros_like(x)}
        state["fooled"] = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        count = torch.zeros((), dtype=torch.float64, device=x.device)
        block = _BLOCK if self.early_stop else self.steps
        # Tensors, for graphs to read: neither a block nor an epoch means a new capture.
        key = torch.full_like(index[0], self._key(epoch))
        for first in range(0, self.steps, block):
            left = remaining(state["fooled"], static=self._uses_graph(x, self._graph))
            if not left.count:
                break
            steps = min(block, self.steps - first)
            part = left.take(state)
            part["peaks"] = x.new_empty(steps, len(left.rows))
            shared = {"count": count, "first": torch.full_like(index[0], first), "key": key}
            self._run_loop(self._graph, {**part, **shared}, steps=steps)
            self._log.add(part["peaks"], left.rows)
            left.put(state, part, ("x_adv", "mean", "square", "fooled"))
        return state["x_adv"]

    def _climb(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        eps: Tensor,
        x_adv: Tensor,
        mean: Tensor,
        square: Tensor,
        fooled: Tensor,
        peaks: Tensor,
        count: Tensor,
        first: Tensor,
        key: Tensor,
        *,
        steps: int,
    ) -> None:
        """Some steps, in place on `x_adv`, the averages, `fooled` and `peaks` [steps, B]."""
        rows = (-1, *[1] * (x.dim() - 1))
        radius = eps.reshape(rows)
        for step in range(steps):
            if self.early_stop:
                fooled |= self._fooled(self._gradient.logits(x_adv), y)
            grad = self._estimate(x_adv, y, index, key, first + step, peaks[step])
            moved = x_adv - x
            adam_step(moved, grad if self.targeted else -grad, mean, square, count, step_size=self.step_size)
            moved = (x + torch.minimum(torch.maximum(moved, -radius), radius)).clamp(*self.bounds)
            torch.where(fooled.reshape(rows), x_adv, moved, out=x_adv)

    def _estimate(
        self, x: Tensor, y: Tensor, index: Tensor, key: int | Tensor, step: Tensor, peak: Tensor
    ) -> Tensor:
        """The gradient of the loss at `x` [B, ...]; `peak` [B] gets its largest entry, nan where a loss was none."""
        grad = torch.zeros_like(x)
        finite = torch.ones_like(peak, dtype=torch.bool)
        for first in range(0, self.samples, self.chunk):
            count = min(self.chunk, self.samples - first)
            number = step * self.samples + first + torch.arange(count, device=x.device)
            draws = signs(
                index.repeat(count),
                tuple(x.shape[1:]),
                seed=key,
                step=number.repeat_interleave(len(x))[:, None],
                dtype=x.dtype,
            ).reshape(count, *x.shape)
            pairs = torch.cat([x + self.delta * draws, x - self.delta * draws]).flatten(0, 1)
            values = self._per_sample(self._gradient.logits(pairs), y.repeat(2 * count))
            above, below = values.reshape(2, count, len(x)).unbind()
            slopes = (above - below).to(x.dtype) / (2 * self.delta * self.samples)
            finite &= slopes.isfinite().all(0)
            slopes = slopes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            # One direction after the other: a sum over them would take its order from the size of the batch.
            for slope, draw in zip(slopes, draws, strict=True):
                grad.addcmul_(draw, slope.reshape(-1, *[1] * (x.dim() - 1)))
        largest = grad.abs().amax(tuple(range(1, x.dim())))
        peak.copy_(torch.where(finite, largest, torch.nan))
        return grad
