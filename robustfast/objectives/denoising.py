"""What the denoisers of CD-VAE's tables have in common: a classifier that stays as it is, and attacks on it alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustfast.attacks import PGD, AttackConfig
from robustfast.errors import UserError
from robustfast.models import Denoised, Network
from robustfast.models.untrained import untrained
from robustfast.objectives.objective import Objective

__all__ = ["Denoising"]


class Denoising(Objective):
    """Trains the denoiser before a classifier that another run has trained (``--start-from RUN``).

    The attack sees the classifier without the denoiser, way s: a grey box, as both methods were published. No weight or
    running statistic of the classifier moves. Ways r and s share it, so its accuracy on clean images is that of s.
    """

    trains = Denoised
    main_ways = "r"
    protocol = "cdvae"

    model: Denoised

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        self.attack = PGD(model.way("s"), seed=seed, engine=engine, **attack.keywords())

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"denoiser": list(self.model.denoiser.parameters())}

    def started(self) -> None:
        if untrained(self.model.classifier_x):
            raise UserError(
                "the classifier behind the denoiser was never trained, and is not trained here: give --start-from RUN, "
                "a run of cdvae_classifier on x, such as digits-cdvae-x"
            )
