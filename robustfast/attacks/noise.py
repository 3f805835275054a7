"""Random noise: the control that every other attack has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.counts import whole_number
from robustfast.attacks.draws import normal, signs, uniform
from robustfast.attacks.losses import Loss, loss_function
from robustfast.attacks.strongest import Strongest, strongest
from robustfast.ops import random_start
from robustfast.ops.sizes import per_sample

__all__ = ["RandomNoise"]

# What labels are held against where no model was asked.
_ANY_LABEL = 2**62


class RandomNoise(Attack):
    """Noise of the ball's size, which knows nothing of the model: what it fools needs no attack.

    Carlini et al. 2019 (arXiv:1902.06705): an attack that finds less than random points of its ball is broken, or its
    gradient masked. By `law`:

    * ``"ball"``: uniform in the ball, as `robustfast.ops.random_start` draws.
    * ``"sphere"``: on the surface of the ball, where in many dimensions nearly all of it lies: eps times a direction,
      uniform under l2 (Foolbox's L2AdditiveGaussianNoiseAttack), from independent Laplace draws divided by their sum
      under l1, and a corner of the ball under linf, each entry +-eps.

    Foolbox's uniform noise is neither: a draw of the cube is scaled to length eps, under linf by its largest entry
    with its sign, so that it may leave the ball. torchattacks' GN adds normal noise of a given deviation, unbounded.

    The result is clipped to `bounds`, which takes from the length. With `restarts` each sample keeps the strongest of
    as many draws, fooled before not fooled, then by loss; with one the model is not run at all. Draws are keyed by
    (seed, epoch, restart) and by each sample's `index`; results do not depend on the batch.

    Args:
        model: images [B, ...] -> logits [B, K]; asked once per restart, where there are several.
        norm: "linf", "l2" or "l1".
        eps: radius of the ball in pixel units; float, or a tensor [] or [B].
        law: "ball" or "sphere".
        restarts: draws for each sample.
        loss: ranks draws that fool the model alike: "margin", "ce", "dlr", or a function (logits, y) -> [B].
        targeted: a draw fools the model where it answers y; the least loss ranks first. Needs restarts.
        bounds, batch_norm, seed, engine: as for `Attack`.

    Raises:
        ValueError: a setting out of range or an unknown name.
    """

    name = "noise"
    kind = "noise"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        law: str = "ball",
        restarts: int = 1,
        loss: str | Loss = "margin",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if law not in ("ball", "sphere"):
            raise ValueError(f"law is {law!r}, expected 'ball' or 'sphere'")
        whole_number("restarts", restarts)
        if targeted and restarts == 1:
            raise ValueError("targeted noise with one draw goes nowhere: give it restarts to choose from")
        super().__init__(
            model, norm=norm, eps=eps, loss=loss, targeted=targeted, bounds=bounds, batch_norm=batch_norm, seed=seed,
            engine=engine,
        )  # fmt: skip
        self.law = law
        self.restarts = restarts
        self._per_sample = loss_function(loss)

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        if start is not None:
            raise ValueError("start was given, but noise starts nowhere: it is drawn")
        if self.restarts == 1:
            self._gradient.classes = _ANY_LABEL
            return self._draw(x, index, self._key(epoch, 0))
        best: Strongest | None = None
        for restart in range(self.restarts):
            x_adv = self._draw(x, index, self._key(epoch, restart))
            logits = self._gradient.logits(x_adv)
            loss = self._per_sample(logits, y)
            strength = (-loss if self.targeted else loss), self._fooled(logits, y)
            best = strongest(best, x_adv, *strength)
        return best.images

    def _draw(self, x: Tensor, index: Tensor, key: int) -> Tensor:
        """Images [B, ...] with one draw of noise."""
        if self.law == "ball":
            return random_start(x, eps=self.eps, norm=self.norm, bounds=self.bounds, seed=key, index=index)
        shape = tuple(x.shape[1:])
        if self.norm == "linf":
            direction = signs(index, shape, seed=key, dtype=torch.float64)
        elif self.norm == "l2":
            direction = normal(index, shape, seed=key, dtype=torch.float64)
        else:
            share = uniform(index, (*shape, 2), seed=key, dtype=torch.float64)
            # 2**-25 keeps the logarithm finite: draws are multiples of 2**-24.
            direction = (share[..., 0] + 2**-25).log() * (2 * (share[..., 1] < 0.5).double() - 1)
        if self.norm != "linf":
            order = 2 if self.norm == "l2" else 1
            direction /= torch.linalg.vector_norm(direction.flatten(1), order, dim=1).reshape(
                -1, *[1] * len(shape)
            )
        eps = per_sample(self.name, "eps", self.eps, x)
        eps = eps.reshape(-1, *[1] * len(shape)) if eps.dim() else eps
        return torch.empty_like(x).copy_((x + (direction * eps).to(x.dtype)).clamp(*self.bounds))
