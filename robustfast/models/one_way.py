"""One encoder and a linear classifier: the plain network that most papers train."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from robustfast.errors import UserError
from robustfast.models.backbone import builder
from robustfast.models.network import Network, check_letters

__all__ = ["OneWay"]


class OneWay(Network):
    """``classifier(features(x))`` with one linear layer. Whichever way is asked for, s, r or n, it is the same one.

    With `unit_norm` the features are divided by their l2 norm, the "activation normalisation layer" of AFD (paper,
    section 3; their code): z = g(x) / max(|g(x)|_2, 1e-12), without a learned scale.

    Args:
        backbone: a registered name (`robustfast.models.MODELS`) or a function without arguments that builds a module
            [B, ...] -> [B, features] with the int attribute `features`.
        num_classes: C, 2 or more.
        in_channels: channels of the images; needed with a name, refused with a function.
        unit_norm: see above.

    Attributes:
        encoder: the backbone.
        classifier: `nn.Linear` [H] -> [C].
        unit_norm: the argument.

    Raises:
        UserError: unknown name, or `num_classes` below 2.
        TypeError: a backbone without `features`, or `in_channels` missing or superfluous.
    """

    readings = "rsn"

    def __init__(
        self,
        backbone: str | Callable[[], nn.Module],
        *,
        num_classes: int,
        in_channels: int | None = None,
        unit_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"num_classes {num_classes}: expected 2 or more")
        self.encoder = builder(backbone, in_channels)()
        self.classifier = nn.Linear(self.encoder.features, num_classes)  # type: ignore[arg-type]
        self.unit_norm = unit_norm

    def features(self, x: Tensor) -> Tensor:
        """What the classifier sees: [B, H], of unit norm where the network normalises."""
        z = self.encoder(x)
        return F.normalize(z, dim=1) if self.unit_norm else z

    def ways(self, x: Tensor, ways: str) -> dict[str, Tensor]:
        check_letters("ways", ways, self.readings)
        return dict.fromkeys(ways, self.classifier(self.features(x)))

    def encoders(self, ways: str | None = None) -> dict[str, nn.Module]:
        return {"r": self.encoder}

    def way_parameters(self, name: str) -> list[nn.Parameter]:
        return list(self.parameters())
