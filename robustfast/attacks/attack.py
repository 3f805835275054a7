"""What every attack does alike: check its arguments, hold the model still, run, and report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from robustfast.attacks.arguments import check_images, check_index, check_sizes
from robustfast.attacks.cuda_graph import GraphedLoop, loops_are_eager
from robustfast.attacks.gradient import InputGradient
from robustfast.attacks.losses import Loss, check_target
from robustfast.attacks.modes import eval_mode
from robustfast.attacks.range_check import Extremes
from robustfast.ops.sizes import check_radius
from robustfast.seeds import derive

__all__ = ["Attack", "AttackReport", "GradientLog"]

ENGINES = ("auto", "eager", "compile", "graph")


@dataclass(frozen=True)
class AttackReport:
    """What became of the gradients of one attack call.

    Attributes:
        zero_gradient: samples whose gradient was zero in every entry in at least one step: dead units, a saturated
            model, underflow, or a loss that starts at its optimum.
        nonfinite_gradient: samples whose gradient held a nan or an infinity in at least one step.
        samples: samples attacked.
    """

    zero_gradient: int
    nonfinite_gradient: int
    samples: int


class GradientLog:
    """Which samples had a gradient that was zero, or not finite, in any step; nothing is read back until `report`.

    Attributes:
        zero, nonfinite: bool [B].
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.zero = torch.zeros(batch, dtype=torch.bool, device=device)
        self.nonfinite = torch.zeros(batch, dtype=torch.bool, device=device)

    def add(self, peaks: Tensor, rows: Tensor | None = None) -> None:
        """Take in the largest gradient entries [..., n] of the samples at `rows` int64 [n], of all where it is None.

        Rows may repeat.
        """
        peaks = peaks.reshape(-1, peaks.shape[-1])
        zero, nonfinite = (peaks == 0).any(0), (~peaks.isfinite()).any(0)
        if rows is None:
            self.zero |= zero
            self.nonfinite |= nonfinite
        else:
            self.zero.index_put_((rows,), zero | self.zero[rows])
            self.nonfinite.index_put_((rows,), nonfinite | self.nonfinite[rows])

    def report(self) -> AttackReport:
        """The counts; waits for the device."""
        return self.reports(len(self.zero))[0] if len(self.zero) else AttackReport(0, 0, 0)

    def reports(self, batch: int) -> list[AttackReport]:
        """The counts of each attack of `batch` samples, where several lie one after the other; waits for the device."""
        parts = zip(self.zero.split(batch), self.nonfinite.split(batch), strict=True)
        return [AttackReport(int(zero.sum()), int(broken.sum()), len(zero)) for zero, broken in parts]


class Attack(ABC):
    """An attack: built once from a model and its settings, called for each batch.

    The model runs in eval mode and gets every submodule's mode back, also when an exception passes through. No
    parameter's ``.grad`` is touched, no weight gradient computed, no global random state read or set, and no loop
    waits for the device. Draws are keyed by seed and by each sample's `index`: how a data set is cut into batches does
    not matter. Images stay in float32 or float64; an enclosing autocast or no_grad stays in force.

    A subclass gives `norms`, `name` and `_run`, which finds the model's gradients in ``self._gradient`` (an
    `InputGradient`, inside its session) and tells ``self._log`` of them.

    Args:
        model: images [B, ...] -> logits [B, K]: a module, one way of a three-way model, or any callable. The mode,
            buffers and parameters of a network hidden inside a lambda cannot be seen: put it into eval mode yourself.
        norm: one of the class's `norms`.
        eps: radius of the ball in pixel units; None where the attack looks for the nearest adversarial image.
        loss: a name in `LOSSES` or a function (logits, target) -> [B].
        targeted: climb towards y instead of away from it.
        bounds: lowest and highest pixel value.
        batch_norm: "eval" normalises by running statistics, "batch" by those of each attacked batch, buffers untouched.
        seed: of every draw.
        engine: "eager", "compile", "graph" or "auto".

    Attributes:
        report: `AttackReport` of the last call; reading it waits for the device.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name: ClassVar[str]
    """Keys the draws, and names the attack in messages."""
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    """The balls it knows; empty where it is bounded otherwise (a flow, a colour map)."""
    kind: ClassVar[Literal["single-step", "iterative", "black-box", "noise"]] = "iterative"
    """What it knows of the model: one gradient, many, outputs alone, or nothing."""
    minimal: ClassVar[bool] = False
    """Whether it looks for the nearest adversarial image: eps may be None then, and where eps is given, an image that
    was found farther away is given up for x itself."""

    _lanes = 1
    """Attacks that run side by side in one call."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor | None = 8 / 255,
        loss: str | Loss = "ce",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if self.norms and norm not in self.norms:
            raise ValueError(f"norm is {norm!r}, expected one of {', '.join(self.norms)} for {self.name}")
        if not bounds[0] < bounds[1]:
            raise ValueError(f"bounds are {bounds}, expected (lowest, highest) with lowest < highest")
        if eps is None and self.norms and not self.minimal:
            raise ValueError(
                f"eps is None, expected a radius: {self.name} does not look for the nearest image"
            )
        if self.norms and eps is not None and not isinstance(eps, Tensor):
            try:
                check_radius(self.name, eps, norm, bounds)
            except ValueError as error:
                raise ValueError(str(error).removeprefix(f"{self.name}: ")) from None
        if batch_norm not in ("eval", "batch"):
            raise ValueError(f"batch_norm is {batch_norm!r}, expected 'eval' or 'batch'")
        if engine not in ENGINES:
            raise ValueError(f"engine is {engine!r}, expected one of {', '.join(ENGINES)}")
        self.model = model
        self.norm = norm
        self.eps = eps
        self.loss = loss
        self.targeted = targeted
        self.bounds = (float(bounds[0]), float(bounds[1]))
        self.batch_norm = batch_norm
        self.seed = seed
        self.engine = engine
        self._gradient = InputGradient(model, self._forward(), loss, compiled=engine == "compile")
        self._log: GradientLog | None = None

    def __call__(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        epoch: int = 0,
        start: Tensor | None = None,
    ) -> Tensor:
        """Attack one batch.

        Args:
            x: images [B, ...] in `bounds`, float32 or float64, any number of dimensions from two, contiguous or
                channels-last.
            y: labels int64 [B] (the wanted ones when targeted), or what the loss takes.
            index: int64 [B], each sample's position in the data set, which keys its draws; None counts from 0 in each
                call.
            epoch: keys the draws.
            start: images to start from instead of the attack's own start, taken as they are.

        Returns:
            Adversarial images like `x`, detached.

        Raises:
            TypeError, ValueError: x, y, index, start or a tensor eps of a wrong kind, pixels outside `bounds`, labels
                outside [0, K), or a model whose output is no logits. Modes are restored first.
        """
        return self._attack(x, y, index, epoch=epoch, start=start)

    def _attack(
        self, x: Tensor, y: Tensor, index: Tensor | None, *, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        """The frame of every call around `_run`, which gets `more`."""
        check_images(x, self.bounds, start)
        check_target(self.loss, x, y)
        x, y = x.detach(), y.detach()
        index = check_index(index, x)
        given = {name: more.get(name) for name in ("eps", "step_size")}
        sizes = {name: getattr(self, name, None) if size is None else size for name, size in given.items()}
        check_sizes(self.name, sizes, x)
        self._log = GradientLog(len(x) * self._lanes, x.device)
        if not len(x):
            return x.clone()
        extremes = Extremes(x, y, self.loss)
        with eval_mode(self.model, batch_norm=self.batch_norm), self._gradient.session(x.device):
            x_adv = self._run(x, y, index, epoch, None if start is None else start.detach(), **more)
        extremes.check(self.bounds, self._gradient.classes)
        return x_adv

    @property
    def gradients(self) -> GradientLog | None:
        """Which samples of the last call had a gradient that was zero or not finite; None before the first call."""
        return self._log

    @property
    def report(self) -> AttackReport:
        if self._log is None:
            raise RuntimeError("no report: this attack has not been called yet")
        return self._log.report()

    def __repr__(self) -> str:
        shown = ("norm", "eps", "loss", "targeted", "batch_norm", "seed")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @abstractmethod
    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        """Adversarial images for a batch of at least one; x and y are detached and checked but for their values."""

    def _forward(self) -> Callable[..., Tensor]:
        """Leaves -> logits."""
        return self.model

    def _key(self, epoch: int, *keys: int | str) -> int:
        """The seed of one kind of draw."""
        return derive(self.seed, self.name, epoch, *keys)

    def _fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        """Which samples [B] the attack has won: another class than y, or y itself when targeted."""
        return (logits.argmax(1) == y) == self.targeted

    def _run_loop(self, graph: GraphedLoop, buffers: dict[str, Tensor], **keywords: int | bool) -> None:
        """Run a loop over `buffers` in place, as a CUDA graph or eagerly, as `engine` says."""
        if self._uses_graph(buffers["x"], graph):
            graph(buffers, **keywords)
        else:
            graph.loop(**buffers, **keywords)

    def _uses_graph(self, x: Tensor, graph: GraphedLoop) -> bool:
        if self.engine == "graph" and not x.is_cuda:
            raise ValueError(
                f"engine 'graph' needs images on a CUDA device, x is on {x.device}; use engine 'auto'"
            )
        if self.engine in ("eager", "compile") or loops_are_eager(x.device):
            return False
        return self.engine == "graph" or (x.is_cuda and graph.usable())
