"""Standard training: the paper's one-way baseline that sees no attack."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustfast.attacks import AttackConfig
from robustfast.objectives.objective import Objective, Phase, accuracies

__all__ = ["ST"]


class ST(Objective):
    """Cross entropy of the non-robust way on natural images: the robust encoder stays as it was (AAT, section 3.1).

    Passes: 3F.
    """

    @dataclass(frozen=True)
    class Config:
        """No settings of its own."""

    main_ways = "n"

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 3

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        logits = self.model.way("n")(x)
        loss = F.cross_entropy(logits, y)
        yield Phase("model", loss, {"clean": loss.detach()}, accuracies({"clean": logits}, y))
