"""APGD-T: APGD towards each of the classes a model holds likeliest, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robustfast.attacks.apgd import APGD
from robustfast.attacks.counts import whole_number
from robustfast.attacks.losses import Loss
from robustfast.ops import dlr_loss, margin_loss

__all__ = ["APGDT"]


class APGDT(APGD):
    """Targeted APGD of Croce and Hein 2020 (arXiv:2003.01690), section 4.1: the second attack of AutoAttack.

    For each sample the `n_target_classes` classes with the largest logits of the clean image beside y take turns as
    the target t; a run of APGD climbs the targeted loss, and any other class than y is a success. Samples that one run
    has won are left out of the next.

    Losses, with z_(i) the i-th largest logit:

    * ``"dlr"``: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12), equation 7 and the authors' code. Needs four
      classes.
    * ``"margin"``: z_t - z_y, from two classes on.

    The authors' code and torchattacks sort the logits and leave out the largest; here it is y that is left out, which
    is the same for the samples that are attacked, but for ties.

    Args:
        model: images [B, ...] -> logits [B, K].
        n_target_classes: targets of each sample; K - 1 where that is less.
        loss: "dlr" or "margin".
        eps, norm, steps, restarts, rho, eot, early_stop, bounds, batch_norm, seed, engine: as of `APGD`, restarts for
            each target. Losses towards different targets do not compare: what comes back is always "success_only".

    Raises:
        ValueError: a setting out of range or an unknown name; when called, fewer classes than the loss needs.
    """

    name = "apgd-t"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        eps: float | Tensor = 8 / 255,
        norm: str = "linf",
        steps: int = 100,
        restarts: int = 1,
        n_target_classes: int = 9,
        loss: str = "dlr",
        rho: float = 0.75,
        eot: int = 1,
        early_stop: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        batch_norm: str = "eval",
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if loss not in ("dlr", "margin"):
            raise ValueError(f"loss is {loss!r}, expected 'dlr' or 'margin', which have a targeted form")
        self.n_target_classes = whole_number("n_target_classes", n_target_classes)
        super().__init__(
            model, eps=eps, norm=norm, steps=steps, restarts=restarts, loss=loss, rho=rho, eot=eot,
            early_stop=early_stop, bounds=bounds, batch_norm=batch_norm, seed=seed, engine=engine,
        )  # fmt: skip

    def _ascended(self) -> Loss:
        loss = dlr_loss if self.loss == "dlr" else margin_loss

        def climbed(logits: Tensor, goal: Tensor) -> Tensor:
            y, target = goal.unbind(1)
            return loss(logits, y, target=target)

        return climbed

    def _goals(self, x: Tensor, y: Tensor, logits: Tensor | None) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        classes = logits.shape[1]
        if self.loss == "dlr" and classes < 4:
            raise ValueError(
                f"targeted loss 'dlr' divides by the gap to the third and fourth logit, the model returned {classes}; "
                f"use loss='margin'"
            )
        others = logits.scatter(1, y.clamp(0, classes - 1)[:, None], -torch.inf)
        targets = others.topk(min(self.n_target_classes, classes - 1), dim=1).indices
        for number, target in enumerate(targets.unbind(1)):
            for restart in range(self.restarts):
                yield (number, restart), torch.stack((y, target), 1)
