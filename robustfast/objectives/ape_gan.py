"""APE-GAN: a generator that paints attacked images anew, against a discriminator that has to tell them from clean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import AttackConfig
from robustfast.errors import UserError
from robustfast.models import ImageDiscriminator, Network
from robustfast.objectives.denoising import Denoising
from robustfast.objectives.objective import Phase
from robustfast.seeds import derive

__all__ = ["APEGAN"]


class APEGAN(Denoising):
    """Shen et al. 2017 (arXiv:1707.05474): with x' the attacked x, the denoiser G and a discriminator A of images,

    1. A descends ``mean softplus(-A(x)) + mean softplus(A(G(x')))``, its cross entropy: x is clean, G(x') is not;
    2. G descends ``mse * mean (G(x') - x)^2 + adversarial * mean softplus(-A(G(x')))`` with the new A.

    The squared error is a mean over pixels in [-1, 1], the range of G's tanh. The classifier is asked for the attack
    alone. One pass of G serves both steps.

    Passes with ten attack steps: 20F of the classifier and three of G, which the estimate takes for as dear; those of
    A, eight, are not counted.

    Attributes:
        discriminator: A, `ImageDiscriminator`. Its weights derive from the seed.

    Raises:
        UserError: a weight that is negative or not finite.
    """

    @dataclass(frozen=True)
    class Config:
        mse: float = 0.7
        """Weight of the squared error."""
        adversarial: float = 0.3
        """Weight of what the discriminator says."""

        def __post_init__(self) -> None:
            for name in ("mse", "adversarial"):
                if not 0 <= (value := getattr(self, name)) < math.inf:
                    raise UserError(f"--objective.{name} is {value}, expected a finite number from 0")

    def __init__(
        self, model: Network, config: Any, attack: AttackConfig, *, seed: int, engine: str = "auto"
    ) -> None:
        super().__init__(model, config, attack, seed=seed, engine=engine)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the devices' generators too, and nobody would put those back.
            torch.default_generator.manual_seed(derive(seed, "discriminator"))
            self.discriminator = ImageDiscriminator(in_channels=self.model.denoiser.in_channels).to(  # type: ignore[arg-type]
                self.model.classifier_x.classifier.weight
            )

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 2 * strength.steps + 3

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {**super().parameters(), "discriminator": list(self.discriminator.parameters())}

    def networks(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator}

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        x_adv = self.attack(x, y, index, **self.now())  # type: ignore[misc]
        made = self.model.cleaned(x_adv)
        clean, painted = _wide(self.discriminator(x)), _wide(self.discriminator(made.detach()))
        told = F.softplus(-clean).mean() + F.softplus(painted).mean()
        yield Phase("discriminator", told, {"discriminator": told.detach()})

        # 4 of pixels in [0, 1] is 1 of those in [-1, 1].
        mse = 4 * (_wide(made) - x).square().mean()
        fooled = F.softplus(-_wide(self.discriminator(made))).mean()
        loss = self.config.mse * mse + self.config.adversarial * fooled
        yield Phase("denoiser", loss, {"mse": mse.detach(), "adversarial": fooled.detach()})


def _wide(values: Tensor) -> Tensor:
    """In float32 where the network runs in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
