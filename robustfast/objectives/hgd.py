"""HGD: a denoiser after which the classifier says of attacked images what it says of clean ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustfast.attacks import AttackConfig, eval_mode
from robustfast.objectives.denoising import Denoising
from robustfast.objectives.objective import Phase

__all__ = ["HGD"]


class HGD(Denoising):
    """``mean |h(denoiser(x')) - h(x)|`` with the logits h of a frozen classifier, over images and classes.

    The high-level representation guided denoiser of Liao et al. 2018 (arXiv:1712.02976), guided by logits ("LGD",
    equation 5; the mean is their code's). The loss goes through the classifier, in eval mode, to the denoiser alone;
    clean images pass only the classifier. The published training set holds images of several attacks and radii, made
    beforehand; here x' comes from the run's attack, anew for each batch.

    Passes with ten attack steps: 23F of the classifier (one forward for h(x), forward and input gradient for h of the
    denoised) and three of the denoiser, which the estimate takes for as dear.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings of its own."""

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 2 * strength.steps + 3 + 3

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        x_adv = self.attack(x, y, index, **self.now())  # type: ignore[misc]
        model = self.model
        with eval_mode(model.classifier_x):
            with torch.no_grad():
                wanted = model.way("s")(x)
            found = model.way("r")(x_adv)
        # In float32 where the network runs in half precision.
        wanted = wanted.to(torch.promote_types(wanted.dtype, torch.float32))
        loss = (found - wanted).abs().mean()
        yield Phase("denoiser", loss, {"logits": loss.detach()})
