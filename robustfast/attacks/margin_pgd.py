"""PGD on the margin between logits: what most papers call C&W under a ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustfast.attacks.losses import loss_function
from robustfast.attacks.pgd import PGD

__all__ = ["MarginPGD"]


class MarginPGD(PGD):
    """PGD that climbs Carlini and Wagner's margin instead of the cross-entropy.

    The loss is f_6 of Carlini and Wagner 2017 (arXiv:1608.04644) with its sign turned,

        min(max_{j != y} z_j - z_y, kappa),

    under the steps, ball and starts of `PGD`; a targeted attack descends max(max_{j != y} z_j - z_y, -kappa). A
    sample that leads by kappa has a gradient of zero and stays where it is.

    Implementations differ in kappa and in the length of a step: Madry et al.'s evaluation (2018) has kappa 50 and
    steps of a fixed length; CD-VAE (Yang et al. 2021) has kappa 10 where it defends and 1000 where it detects, which
    is as good as none, with steps of eps / sqrt(steps) (``relative_step=steps ** -0.5`` here; "pgd-c" with
    ``loss="margin"`` is its attack without kappa).

    Args:
        model: as of `PGD`.
        eps: radius.
        kappa: the lead at which a sample stops; infinite: none does.
        settings: further keywords of `PGD`, but for `loss`.

    Raises:
        ValueError: as `PGD`; a kappa that is negative or nan.
    """

    name = "cw-pgd"
    norms = ("linf", "l2")

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        *,
        kappa: float = float("inf"),
        **settings: Any,
    ) -> None:
        if not kappa >= 0:
            raise ValueError(f"kappa is {kappa}, expected a difference of logits >= 0")
        if settings.get("loss", "margin") != "margin":
            raise ValueError(f"loss is {settings['loss']!r}, but this attack is PGD on the margin; use PGD")
        margin = loss_function("margin")
        limits = {"min": -kappa} if settings.get("targeted") else {"max": kappa}

        def limited(logits: Tensor, target: Tensor) -> Tensor:
            return margin(logits, target).clamp(**limits)

        self.kappa = kappa
        super().__init__(model, eps, **{**settings, "loss": limited if kappa < float("inf") else "margin"})
        # Labels are held to those of a named loss.
        self.loss = "margin"
