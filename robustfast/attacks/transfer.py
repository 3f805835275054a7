"""Transfer: images made against one model, tried on another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from robustfast.attacks.attack import Attack
from robustfast.attacks.losses import loss_function
from robustfast.attacks.strongest import Strongest, strongest
from robustfast.registry import lookup

__all__ = ["Transfer"]


class Transfer(Attack):
    """A black-box attack that never asks the model: adversarial images of a source model.

    Papernot et al. 2016 (arXiv:1605.07277) and Liu et al. 2017 (arXiv:1611.02770). The attack runs in full against
    `source`, its gradients, draws and restarts included; the images are those that it returns there, to the bit, and
    are judged on `model` by whoever called. A white-box attack on the model that finds fewer adversarial images than
    this one points at masked gradients (Carlini et al. 2019, arXiv:1902.06705).

    With several sources each sample keeps the image that is strongest on `model`: fooled before not fooled, then by
    the loss. That asks the model once per source. (Liu et al. attack the sum of the sources' losses instead: pass one
    source that averages their logits.)

    Both models see the same pixels: normalise inside each.

    Args:
        model: the model under test, images [B, ...] -> logits [B, K].
        source: a model with the same classes, or a list of them; there is no default.
        attack: a name in `ATTACKS`, run with these settings.
        norm, eps, targeted, bounds, batch_norm, seed, engine: of the attack on the source.
        settings: further keywords of that attack.

    Attributes:
        attacks: the attacks on the sources.

    Raises:
        ValueError: no source, an unknown attack, or a setting that it refuses.
    """

    name = "transfer"
    kind = "black-box"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        source: Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]] | None = None,
        attack: str = "pgd",
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
        **settings: Any,
    ) -> None:
        # The table names this class too.
        from robustfast.attacks.presets import ATTACKS

        if source is None:
            raise ValueError(
                "source is None, expected a model: transfer makes its images against another one"
            )
        sources = list(source) if isinstance(source, list | tuple) else [source]
        if not sources or not all(callable(one) for one in sources):
            raise ValueError(f"source is {source!r}, expected a model, or a sequence of some")
        preset = lookup("attack", ATTACKS, attack)
        if preset.attack is Transfer:
            raise ValueError("attack is 'transfer', expected one that runs against the source itself")
        shared = {"bounds": bounds, "batch_norm": batch_norm, "seed": seed, "engine": engine, **settings}
        if preset.attack.norms:
            shared |= {"norm": norm, "eps": eps}
        if targeted:
            shared["targeted"] = True
        self.attacks = [preset(one, **shared) for one in sources]
        super().__init__(
            model, norm=norm, eps=eps, loss=self.attacks[0].loss, targeted=targeted, bounds=bounds,
            batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip
        self.attack = attack
        self._per_sample = loss_function(self.loss)

    def __repr__(self) -> str:
        return f"Transfer(attack={self.attack!r}, sources={len(self.attacks)}, {self.attacks[0]!r})"

    def _run(
        self, x: Tensor, y: Tensor, index: Tensor, epoch: int, start: Tensor | None, **more: Any
    ) -> Tensor:
        best: Strongest | None = None
        for attack in self.attacks:
            x_adv = attack(x, y, index, epoch=epoch, start=start)
            # Its gradients were the only ones, and it has held the labels to the source's classes.
            self._log.zero |= attack._log.zero
            self._log.nonfinite |= attack._log.nonfinite
            self._gradient.classes = attack._gradient.classes
            if len(self.attacks) == 1:
                return x_adv
            logits = self._gradient.logits(x_adv)
            loss = self._per_sample(logits, y)
            strength = (-loss if self.targeted else loss), self._fooled(logits, y)
            best = strongest(best, x_adv, *strength)
        return best.images
