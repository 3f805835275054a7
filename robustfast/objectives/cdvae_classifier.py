"""Classifiers of the parts into which a trained auto-encoder splits images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.attacks import AttackConfig, eval_mode
from robustfast.errors import UserError
from robustfast.models import ClassDisentangled
from robustfast.models.class_disentangled import PARTS
from robustfast.models.untrained import untrained
from robustfast.objectives.objective import Objective, Phase

__all__ = ["CDVAEClassifier"]

_WAYS = {part: way for way, part in PARTS.items()}


class CDVAEClassifier(Objective):
    """Cross entropy of one classifier: D-hat on x, D_G on G(x), or D on R(x) = x - G(x) (Yang et al. 2021, section 4).

    G is as evaluation has it: in eval mode, with the mean of the posterior for a code, and no weight or running
    statistic of it moves. Training starts from a run that has one (``--start-from``).

    Passes: 3F of the classifier; that of G, forward alone, is not counted.

    Raises:
        UserError: from `started`, a G with its first weights.
    """

    @dataclass(frozen=True)
    class Config:
        part: Literal["x", "g", "r"] = "g"
        """What the classifier sees: the image (x), G(x) (g) or x - G(x) (r)."""

        def __post_init__(self) -> None:
            if self.part not in _WAYS:
                raise UserError(f"--objective.part is {self.part!r}, expected one of {', '.join(_WAYS)}")

    trains = ClassDisentangled
    main_ways = "r"
    protocol = "cdvae"

    model: ClassDisentangled

    @classmethod
    def trained_ways(cls, settings: Any) -> str:
        return _WAYS[settings.part]

    @classmethod
    def passes(cls, settings: Any, strength: AttackConfig) -> float:
        return 3.0

    def parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"model": list(self.model.classifier(self.config.part).parameters())}

    def started(self) -> None:
        generator = self.model.generator
        if self.config.part != "x" and generator is not None and untrained(generator):
            raise UserError(
                f"the auto-encoder was never trained, and part {self.config.part} is what it makes: give "
                f"--start-from RUN, a run of cdvae"
            )

    def phases(self, x: Tensor, y: Tensor, index: Tensor) -> Iterator[Phase]:
        part = self.config.part
        with ExitStack() as modes, torch.no_grad():
            if self.model.generator is not None:
                modes.enter_context(eval_mode(self.model.generator))
            seen = self.model.part(x, part)
        loss = F.cross_entropy(self.model.classifier(part)(seen), y)
        yield Phase("model", loss, {"ce": loss.detach()})
