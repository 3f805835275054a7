"""PGD-C: the PGD of CD-VAE's code, whose steps shrink with their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustfast.attacks.pgd import PGD

__all__ = ["PGDC"]


class PGDC(PGD):
    """PGD with steps of eps / sqrt(steps), from a start that is uniform in the ball.

    Yang et al. 2021, Class-disentanglement and applications in adversarial detection and defense: the attack of their
    code, which is that of the perceptual-adversarial code base. Loss "margin" is what they call C&W.

    Args:
        model: as of `PGD`.
        eps: radius.
        steps: gradient steps, which set the length of one.
        settings: further keywords of `PGD`, but for step sizes.

    Raises:
        ValueError: as `PGD`.
    """

    name = "pgd-c"

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        eps: float | Tensor = 8 / 255,
        steps: int = 10,
        **settings: Any,
    ) -> None:
        # A wrong number of steps is PGD's to refuse.
        relative = steps**-0.5 if isinstance(steps, int) and steps > 0 else 1.0
        super().__init__(model, eps, steps=steps, relative_step=relative, **settings)
