"""Class disentanglement: an auto-encoder takes out of an image what its class does not need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import AttackConfig
from robustfast.data.mixup import mixup
from robustfast.errors import UserError
from robustfast.models import ClassDisentangled
from robustfast.objectives.objective import Objective, Phase
from robustfast.seeds import derive

__all__ = ["CDVAE"]

_CURRICULUM = (10.0, 5.0, 1.0)


class CDVAE(Objective):
    """Equations 1 to 3 of Yang et al. 2021, weighed as in their code: G and the classifier D of R(x) = x - G(x).

    ``w * |G(x) - x|^2 + gamma * CE(D(x - G(x)), y) + beta * KL / (channels * latent)``

    Means over the batch, the first one over all pixels too, in normalised pixels. Nothing is detached: through -G(x)
    the cross entropy pushes out of G(x) what D needs, while the first term pulls all of the image into it.

    The paper's equations sum over pixels and weigh the divergence by beta alone. From its code come the weights'
    scaling, and two things that its text leaves out: the weight w of the reconstruction falls in steps
    (`Config.curriculum`), and images are mixed in pairs (`Config.mixup`), one weight of Beta(2, 2) a batch. The cross
    entropy is then the mixture of both labels', and what G rebuilds is the mixed image. The code that is drawn from the
    posterior depends on (seed, epoch, index).

    A vector-quantised G has the losses of its codebook in place of the divergence; weigh them by ``beta = 1``.

    Passes, where 1F is one of D and that of G is not counted: 3F.
    """

    @dataclass(frozen=True)
    class Config:
        gamma: float = 2.0
        """Weight of the cross entropy of D on R(x)."""
        beta: float = 0.2
        """Weight of the divergence of the posterior, over channels times length of the code."""
        reconstruction: float = 1.0
        """Weight of the squared error of G(x), a mean over pixels."""
        curriculum: bool = True
        """Multiply that weight by 10 in the first third of the training and by 5 in the second one."""
        mixup: bool = True
        """Mix the images of a batch in pairs, by one weight of Beta(2, 2)."""

        def __post_init__(self) -> None:
            for name in ("gamma", "beta", "reconstruction"):
                if not 0 <= (value := getattr(self, name)) < math.inf:
                    raise UserError(f"--objective.{name} is {value}, expected a finite number from 0")

    trains = ClassDisentangled
    main_ways = "n"
    protocol = "cdvae"

    model: ClassDisentangled

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 3.0

    def now(self) -> dict[str, Any]:
        """The keyword `epoch`, the weight of the `reconstruction`, and the seed of the `mixture` where there is one.

        All of them are the same for every part of a batch and in every process.
        """
        config = self.config
        third = min(int(3 * self.progress), 2)
        found = {
            "epoch": self.epoch,
            "reconstruction": config.reconstruction * (_CURRICULUM[third] if config.curriculum else 1.0),
        }
        if config.mixup:
            # The share of the training that is done tells the batches of an epoch apart.
            found["mixture"] = derive(self.seed, "mixup", self.epoch, str(self.progress))
        return found

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        config, now = self.config, self.now()
        weight: Tensor | float = 1.0
        partner = y
        if config.mixup:
            mixed = mixup(x, seed=now["mixture"], index=index)
            x, weight, partner = mixed.x, mixed.weight.to(x.device, x.dtype), y[mixed.partner]
        split = self.model.split(x, seed=derive(self.seed, "posterior", self.epoch), index=index)
        logits = self.model.classifier("r")(split.r)
        ce = F.cross_entropy(logits, y)
        if config.mixup:
            ce = weight * ce + (1 - weight) * F.cross_entropy(logits, partner)
        # In mixed precision the parts are short; their means are not.
        terms = {
            "reconstruction": F.mse_loss(split.g.to(x.dtype), split.x),
            "ce": ce,
            "regulariser": split.regulariser.to(x.dtype).mean(),
        }
        weights = (now["reconstruction"], config.gamma, config.beta)
        loss = torch.stack(
            [factor * term for factor, term in zip(weights, terms.values(), strict=True)]
        ).sum()
        yield Phase("model", loss, {name: term.detach() for name, term in terms.items()})
