"""Attacks on what an image is made from: a flow, a colour map, the coefficients of its JPEG."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from robustfast.attacks.adam import adam_step
from robustfast.attacks.attack import Attack
from robustfast.attacks.compaction import remaining
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.draws import uniform
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.losses import Loss, loss_function
from robustfast.attacks.strongest import Strongest, strongest
from robustfast.ops import pgd_step

__all__ = ["TransformAttack"]

# Steps between two looks at who is left, where fooled samples are left out.
BLOCK = 10

State = dict[str, Tensor]


class TransformAttack(Attack):
    """Climbs a loss over an offset to the parameters of a map of images, each entry of it bounded by eps.

    A subclass gives `_prepare`, what the map needs to know of the clean images; `_size`, the shape of one sample's
    offset; `_images`, the map; and where they differ `_confine` and `_penalty`. An offset of zero leaves the image as
    it is, up to what the map itself loses.

    Args:
        model: see `Attack`.
        eps: bound on each entry of the offset, in the map's own units.
        steps: gradient steps.
        step_size: of Adam, or of each sign step.
        optimizer: "adam" or "sign".
        random_start: start from an offset drawn from U(-eps, eps), not from zero.
        restarts: independent random starts; each sample keeps its strongest: fooled before not fooled, then by loss.
        eot: gradients averaged per step, for models that draw.
        early_stop: leave a sample where the model was first found to be fooled, looked at before every tenth step.
        loss, targeted, bounds, batch_norm, seed, engine: see `Attack`.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    norms = ()

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float,
        steps: int,
        step_size: float,
        optimizer: str,
        random_start: bool,
        restarts: int,
        eot: int,
        early_stop: bool,
        loss: str | Loss,
        targeted: bool,
        bounds: tuple[float, float],
        batch_norm: str,
        seed: int,
        engine: str,
    ) -> None:
        super().__init__(
            model, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        if isinstance(eps, Tensor) or not 0 <= eps < float("inf"):
            raise ValueError(f"eps is {eps}, expected a number >= 0: the bound of {self.name}")
        if not 0 <= step_size < float("inf"):
            raise ValueError(f"step_size is {step_size}, expected a length >= 0")
        self.steps = whole_number("steps", steps)
        self.restarts = whole_number("restarts", restarts)
        self.eot = whole_number("eot", eot)
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts is {restarts} without a random start: every one would find the same")
        if early_stop and loss == "kl":
            raise ValueError("early_stop needs labels to tell who is fooled, loss 'kl' takes probabilities")
        self.step_size = step_size
        self.random_start = random_start
        self.early_stop = early_stop
        self._adam = optimizer == "adam"
        self._per_sample = loss_function(loss)
        self._writes = ("offset", "mean", "square") if self._adam else ("offset",)
        self._graph = GraphedLoop(
            model, self._climb, warn=engine == "auto", writes=(*self._writes, "peaks", "count")
        )

    @abstractmethod
    def _prepare(self, x: Tensor) -> State:
        """What the map needs of the clean images x [B, C, H, W]: tensors [B, ...], computed once per call.

        Raises:
            ValueError: images of a shape that it cannot work on.
        """

    @abstractmethod
    def _size(self, x: Tensor) -> tuple[int, ...]:
        """Shape of one sample's offset."""

    @abstractmethod
    def _images(self, x: Tensor, offset: Tensor, prepared: State, *, first: bool = False) -> Tensor:
        """Images in bounds like `x`, differentiable by `offset`; `first` in the pass of a start's first step."""

    def _confine(self, offset: Tensor, prepared: State) -> Tensor:
        """The nearest offset that is allowed."""
        return offset.clamp(-self.eps, self.eps)

    def _penalty(self, offset: Tensor) -> Tensor | None:
        """[B], taken from the loss that is climbed."""
        return None

    def _run(self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None) -> Tensor:
        if start is not None:
            raise ValueError(f"start was given, but {self.name} starts from an offset, not from an image")
        prepared = self._prepare(x)
        best: Strongest | None = None
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for restart in range(self.restarts):
            offset = x.new_zeros(len(x), *self._size(x))
            if self.random_start:
                draws = uniform(index, self._size(x), seed=self._key(epoch, restart), dtype=x.dtype)
                offset = draws.mul_(2).sub_(1).mul_(self.eps)
            state = {"x": x, "target": y, "offset": offset, **prepared}
            if self._adam:
                state |= {"mean": torch.zeros_like(offset), "square": torch.zeros_like(offset)}
            self._ascend(state, list(prepared), done)
            offset = self._confine(state["offset"], prepared)
            with torch.no_grad():
                images = torch.empty_like(x).copy_(self._images(x, offset, prepared))
            if self.restarts > 1:
                loss, right = self._gradient.score([images], y)
                strength = (-loss, right) if self.targeted else (loss, ~right)
                best = strongest(best, images, *strength)
                # A sample that was fooled is left out of the next start.
                done = best.fooled.clone() if self.early_stop else done
        return images if best is None else best.images

    def _ascend(self, state: State, prepared: list[str], done: Tensor) -> None:
        """All steps of one start, in place on the state; those `done` bool [B] are left alone, where any stop early."""
        count = torch.zeros((), dtype=torch.float64, device=state["x"].device)
        block = BLOCK if self.early_stop else self.steps
        for first in range(0, self.steps, block):
            rows, part = None, dict(state)
            if self.early_stop:
                done = done | self._settled(state, prepared)
                left = remaining(done, static=self._uses_graph(state["x"], self._graph))
                if not left.count:
                    return
                if left.count < len(done):
                    rows, part = left.rows, left.take(state)
            steps = min(block, self.steps - first)
            part |= {"peaks": part["x"].new_empty(steps, len(part["x"])), "count": count}
            self._run_loop(self._graph, part, steps=steps, first=first == 0)
            self._log.add(part["peaks"], rows)
            if rows is not None:
                left.put(state, part, self._writes)

    def _settled(self, state: State, prepared: list[str]) -> Tensor:
        """Which samples [B] the offsets already win."""
        known = {name: state[name] for name in prepared}
        with torch.no_grad():
            images = self._images(state["x"], self._confine(state["offset"], known), known)
        return self._fooled(self._gradient.logits(images), state["target"])

    def _climb(
        self,
        x: Tensor,
        target: Tensor,
        offset: Tensor,
        peaks: Tensor,
        count: Tensor,
        mean: Tensor | None = None,
        square: Tensor | None = None,
        *,
        steps: int,
        first: bool,
        **prepared: Tensor,
    ) -> None:
        """Steps in place on `offset`, which each one confines before it looks."""
        sign = -1.0 if self.targeted else 1.0
        for step in range(steps):
            offset.copy_(self._confine(offset, prepared))
            leaf = offset.detach().requires_grad_()
            images = self._images(x, leaf, prepared, first=first and step == 0)
            grad = sign * torch.autograd.grad(images, leaf, self._pixel_gradient(images, target))[0]
            largest_entry(grad, out=peaks[step])
            penalty = self._penalty(leaf)
            if penalty is not None:
                grad = grad - torch.autograd.grad(penalty.sum(), leaf)[0]
            if self._adam:
                adam_step(offset, -grad, mean, square, count, step_size=self.step_size)
            elif self.eps:
                pgd_step(
                    offset, grad.contiguous(), torch.zeros_like(offset), step_size=self.step_size, eps=self.eps,
                    bounds=(-self.eps, self.eps), out=offset,
                )  # fmt: skip

    def _pixel_gradient(self, images: Tensor, target: Tensor) -> Tensor:
        """Gradient of the loss by the images, in its true length: a penalty is set against it."""
        leaf = images.detach().requires_grad_()
        total = torch.zeros_like(images)
        for _ in range(self.eot):
            values = self._per_sample(self._gradient.forward(leaf), target)
            total = total + self._gradient.gradient_of(values, leaf)
        return total / self.eot
