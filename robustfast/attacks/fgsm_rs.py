"""FGSM-RS: one long step from a random start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustfast.attacks.pgd import PGD

__all__ = ["FGSMRS"]


class FGSMRS(PGD):
    """FGSM from a random start, with a step longer than the radius.

    Wong et al. 2020, Fast is better than free (arXiv:2001.03994), algorithm 3: delta from U(-eps, eps), one step of
    alpha = 1.25 eps, projection, clip. Here the start is clipped to the box before the gradient, as in their code.
    torchattacks' FFGSM gives alpha in pixels, 10/255 for eps 8/255, which is 1.25 too. Not the RAND+FGSM of Tramer et
    al. 2018 (arXiv:1705.07204), whose start is a sign and whose step is the rest of eps.

    Args:
        model: as of `PGD`.
        eps: radius.
        relative_step: length of the step as a fraction of eps.
        settings: further keywords of `PGD`, but for steps, step sizes and starts.

    Raises:
        ValueError: as `PGD`.
    """

    name = "fgsm-rs"
    kind = "single-step"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        relative_step: float = 1.25,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, steps=1, relative_step=relative_step, random_start=True, **settings)
