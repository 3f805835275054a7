"""PGD: projected gradient ascent from a random start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack, AttackReport
from robustfast.attacks.config import check_rule
from robustfast.attacks.counts import whole_number
from robustfast.attacks.cuda_graph import GraphedLoop
from robustfast.attacks.gradient import largest_entry
from robustfast.attacks.losses import Loss
from robustfast.attacks.strongest import Strongest, strongest
from robustfast.attacks.until_fooled import UntilFooled
from robustfast.ops import pgd_step, random_start
from robustfast.seeds import derive

__all__ = ["PGD", "AttackReport", "pgd"]


class PGD(Attack):
    """Projected gradient descent, as an object that is built once and called for each batch.

    Madry et al. 2018 (arXiv:1706.06083), section 2.1: from a random point of the eps-ball around x, `steps` times

        x_adv <- clip(project(x_adv + step_size * direction(grad_x loss(model(x_adv), y)))).

    Implementations differ in three places. Here the order is project, then clip (so do torchattacks, Foolbox and
    AutoAttack; TRADES' l2 attack clips first); the result is the last iterate (not the one of highest loss); and the
    start is, by `random_start`:

    * ``"ball"`` or True: uniform in the ball of the norm, then clipped to bounds. Foolbox draws so; torchattacks' l2
      start is uniform in the radius, hence denser in the middle.
    * ``"pixel"``: U(-eps, eps) for each pixel under every norm, then clipped to bounds: YOPO's PGD (Zhang et al.
      2019, arXiv:1905.00877), which AAT uses. With norm "l2" and step "sign" it is that paper's "l2" attack, but for
      the order: YOPO clips, then projects, so at the walls of the box its images lie a little further out. YOPO also
      leaves the start unclipped before the first gradient. Under linf it is the same as "ball".
    * False: x itself (BIM, Kurakin et al. 2017).

    Under l1 the step is by default the sparse one of SLIDE (Tramer and Boneh 2019, arXiv:1904.13000) with the exact
    Euclidean projection; step "grad" is Foolbox's. See `robustfast.ops.pgd_step` for every rule. For several norms at
    once, alternate attacks as Maini et al. 2020 (arXiv:1909.04068) do.

    Draws are keyed by (seed, epoch, restart) and by each sample's `index`: they do not depend on how a data set is
    cut into batches, and no global random state is read or set. The model runs in eval mode and gets every
    submodule's mode back. No parameter's ``.grad`` is touched and no weight gradient computed. The loop never waits
    for the device. An enclosing autocast stays in force (images, perturbation and step stay in float32; weights are
    cast once per attack), as does an enclosing no_grad.

    Args:
        model: images [B, ...] -> logits [B, K]: a module, one way of a three-way model, or any callable. The mode,
            buffers and parameters of a network hidden inside a lambda cannot be seen: put it into eval mode yourself.
        eps: radius of the ball in pixel units; float, or a tensor [] or [B] of the images' dtype.
        step_size: length of a step in pixel units; as eps. None: a quarter of eps, which is 2/255 at 8/255.
        relative_step: length of a step as a fraction of eps, instead of `step_size`, whatever eps a call gives:
            Foolbox's rel_stepsize.
        steps: gradient steps.
        norm: "linf", "l2" or "l1".
        step: "auto", "sign", "grad" or "topq": the direction, see `robustfast.ops.pgd_step`.
        q: fraction of the pixels a "topq" step moves.
        random_start: True, "ball", "pixel" or False.
        restarts: independent starts; each sample keeps its strongest: fooled before not fooled, then by loss. More
            than one costs a forward pass per restart.
        loss: "ce", "margin", "dlr", "kl", or a function (logits, target) -> [B]; see `robustfast.attacks.losses`.
        targeted: descend the loss towards y instead of climbing away from it.
        bounds: lowest and highest pixel value.
        early_stop: a sample stays where the model is first seen to be fooled, as in the evaluation of
            robust_overfitting (Rice et al. 2020): it is left out of further steps, in blocks of `until_fooled.BLOCK`,
            and of further restarts. The same samples are fooled or more: one that a later step would lose again counts.
        batch_norm: "eval": running statistics. "batch": those of each attacked batch, buffers untouched, for recipes
            that attack in train mode; results then depend on the batch.
        seed: of every draw.
        engine: "eager"; "compile": forward, loss and backward through torch.compile where it works (where not, a
            warning says why, once); "graph": the whole loop as one CUDA graph, captured again when shapes, dtypes,
            autocast or the storage of weights change; "auto": graph on CUDA where the model allows it (where not, a
            warning says why, once), else eager. Inside a caller's capture, "graph" and "auto" become part of it.

    Attributes:
        report: `AttackReport` of the last call; reading it waits for the device.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "pgd"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor | None = None,
        steps: int = 10,
        norm: str = "linf",
        step: str = "auto",
        q: float = 0.01,
        random_start: bool | str = True,
        restarts: int = 1,
        loss: str | Loss = "ce",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
        relative_step: float | None = None,
        early_stop: bool = False,
    ) -> None:
        if random_start not in (True, False, "ball", "pixel"):
            raise ValueError(f"random_start is {random_start!r}, expected True, False, 'ball' or 'pixel'")
        whole_number("restarts", restarts)
        if restarts > 1 and not random_start:
            raise ValueError(f"restarts is {restarts} without a random start: every one would find the same")
        super().__init__(
            model, norm=norm, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        if early_stop and loss == "kl":
            raise ValueError("early_stop needs labels to tell who is fooled, loss 'kl' takes probabilities")
        if step_size is not None and relative_step is not None:
            raise ValueError(
                f"step_size is {step_size} and relative_step {relative_step}: expected one of them, in pixels or of eps"
            )
        if step_size is None and relative_step is None:
            # A fixed length would not leave the middle of a larger ball, nor of any l2 or l1 ball.
            relative_step = 0.25
        self.step_size = step_size
        self.relative_step = relative_step
        self.steps = steps
        self.step = step
        self.q = q
        self.law = {True: "ball", False: None}.get(random_start, random_start)
        self.restarts = restarts
        self.early_stop = early_stop
        self._check_sizes(eps, self.step_size if relative_step is None else relative_step)
        self._graph = GraphedLoop(model, self._climb, warn=engine == "auto")
        self._until_fooled = UntilFooled(self)

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        epoch: int = 0,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Attack one batch.

        Args:
            x: images [B, ...] in `bounds`, float32 or float64, any number of dimensions from two, contiguous or
                channels-last.
            y: labels int64 [B] (the wanted ones when targeted); probabilities [B, K] for loss "kl"; whatever a loss
                of your own takes.
            index: int64 [B], each sample's position in the data set, which keys its draws; None counts from 0 in each
                call.
            epoch: keys the draws.
            eps, step_size: instead of those given at construction, for ramps; nothing is compiled or captured again.
            start: images to start from instead of the random start, taken as they are; the first step projects them.

        Returns:
            Adversarial images like `x`, detached.

        Raises:
            TypeError, ValueError: x, y, index, start, or a tensor eps or step_size of a wrong kind, pixels outside
                `bounds`, labels outside [0, K), or a model whose output is no logits. Modes are restored first.
        """
        return self._attack(x, y, index, epoch=epoch, start=start, eps=eps, step_size=step_size)

    def __repr__(self) -> str:
        step = "step_size" if self.relative_step is None else "relative_step"
        shown = ("eps", step, "steps", "norm", "step", "restarts", "loss", "targeted", "batch_norm")
        return f"PGD({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    # What one way or several ways at once differ in. `batch` is the number of samples of one way ("lane"); with
    # several, the lanes lie one after the other in every buffer.

    def _forward(self) -> Callable[..., Tensor]:
        """Leaves -> logits of all lanes."""
        return self.model

    def _spans(self, batch: int) -> list[slice]:
        """The leaves: which rows of the adversarial images each of the forward's arguments holds."""
        return [slice(0, batch)]

    def _parts(self, batch: int) -> list[slice]:
        """The rows that take a step together."""
        return [slice(0, batch)]

    def _gradients(self, grads: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The gradient of each part from those of the leaves."""
        return grads

    # What kinds of PGD differ in.

    def _state(self, x: Tensor) -> dict[str, Tensor]:
        """Further tensors [B, ...] that a start carries from step to step, as they are before the first."""
        return {}

    def _direction(self, grad: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """What to step along; updates the state in place."""
        return grad

    def _move(self, here: Tensor, direction: Tensor, centre: Tensor, sizes: Mapping[str, Tensor]) -> None:
        """One step of `here` in place, with the projection and the clip."""
        rule = {"norm": self.norm, "bounds": self.bounds, "step": self.step, "q": self.q}
        pgd_step(here, direction, centre, out=here, **sizes, **rule)

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        epoch: int,
        start: Tensor | None,
        eps: float | Tensor | None = None,
        step_size: float | Tensor | None = None,
        seeds: Sequence[int] = (),
    ) -> Tensor:
        if start is not None and self.restarts > 1:
            raise ValueError(
                f"start was given, but restarts is {self.restarts}: every one would find the same"
            )
        if eps is not None or step_size is not None:
            self._check_sizes(0.0 if eps is None else eps, 0.0 if step_size is None else step_size)
        eps = self.eps if eps is None else eps
        if step_size is None:
            step_size = self.step_size if self.relative_step is None else self.relative_step * eps
        seeds = seeds or [self.seed]
        lanes = len(seeds)
        sizes = {"eps": _size(eps, x, lanes), "step_size": _size(step_size, x, lanes)}
        if self.targeted:
            sizes["step_size"] = -sizes["step_size"]
        starts = {"eps": eps, "norm": self.norm, "bounds": self.bounds, "index": index}
        batch = len(x)
        x, y = _repeat(x, lanes), _repeat(y, lanes)
        x_adv = torch.empty_like(x)
        best: Strongest | None = None
        fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for restart in range(self.restarts):
            if start is not None:
                x_adv.copy_(_repeat(start, lanes))
            elif self.law is None:
                x_adv.copy_(x)
            else:
                for lane, seed in enumerate(seeds):
                    rows = slice(lane * batch, (lane + 1) * batch)
                    key = derive(seed, "pgd", epoch, restart)
                    random_start(x[rows], seed=key, law=self.law, out=x_adv[rows], **starts)
            buffers = {"x_adv": x_adv, "x": x, "target": y, **sizes, **self._state(x)}
            if self.early_stop:
                self._until_fooled(buffers, fooled)
            else:
                buffers["peaks"] = x.new_empty(self.steps, len(x))
                self._run_loop(self._graph, buffers, batch=batch)
                self._log.add(buffers["peaks"])
            if self.restarts > 1:
                loss, right = self._gradient.score([x_adv[span] for span in self._spans(batch)], y)
                strength = (-loss, right) if self.targeted else (loss, ~right)
                best = strongest(best, x_adv, *strength)
                fooled |= best.fooled
        return x_adv if best is None else best.images

    def _climb(
        self,
        x_adv: Tensor,
        peaks: Tensor,
        x: Tensor,
        target: Tensor,
        eps: Tensor,
        step_size: Tensor,
        *,
        batch: int,
        **state: Tensor,
    ) -> None:
        """All steps of one start, in place on `x_adv` [B, ...]; `peaks` [steps, B] gets each gradient's largest."""
        spans = [x_adv[span] for span in self._spans(batch)]
        parts = [
            (
                x_adv[rows],
                x[rows],
                {"eps": _rows(eps, rows), "step_size": _rows(step_size, rows)},
                {name: value[rows] for name, value in state.items()},
                peaks[:, rows],
            )
            for rows in self._parts(batch)
        ]
        for step in range(self.steps):
            # A fresh alias as the leaf of this step's graph: the step may then write x_adv, which autograd never saw.
            leaves = [span.detach().requires_grad_() for span in spans]
            grads = self._gradients(self._gradient(leaves, target), batch)
            for grad, (here, centre, sizes, own, peak) in zip(grads, parts, strict=True):
                largest_entry(grad, out=peak[step])
                self._move(here, self._direction(grad, own), centre, sizes)

    def _check_sizes(self, eps: float | Tensor, step_size: float | Tensor) -> None:
        # The values of tensors are not looked at: that would wait for the device.
        numbers = [0.0 if isinstance(value, Tensor) else value for value in (eps, step_size)]
        check_rule(*numbers, self.steps, self.norm, self.step, self.q, self.bounds)


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    index: Tensor | None = None,
    *,
    epoch: int = 0,
    start: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """`PGD` as one function call, for a single batch: same keywords, same result.

    engine "auto" means eager here: a CUDA graph would be captured and thrown away.
    """
    if settings.get("engine", "auto") == "auto":
        settings["engine"] = "eager"
    return PGD(model, **settings)(x, y, index, epoch=epoch, start=start)


def _repeat(value: Tensor, times: int) -> Tensor:
    """The rows of a tensor `times` over, in the memory format they have."""
    return value if times == 1 else torch.cat([value] * times)


def _size(value: float | Tensor, x: Tensor, lanes: int) -> Tensor:
    """eps or step_size as the op wants it: once per attack, and on the host where it is one number."""
    if not isinstance(value, Tensor):
        return torch.scalar_tensor(value, dtype=x.dtype)
    return _repeat(value, lanes) if value.dim() else value


def _rows(value: Tensor, rows: slice) -> Tensor:
    return value[rows] if value.dim() else value
