"""BIM: PGD from the image itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustfast.attacks.pgd import PGD

__all__ = ["BIM"]


class BIM(PGD):
    """The basic iterative method: steps along the sign of the gradient from the image itself.

    Kurakin et al. 2017 (arXiv:1607.02533), section 2.2. Their step is 1/255 and their number of steps
    min(255 eps + 4, 1.25 * 255 eps); torchattacks counts so where steps=0 is given. Here both are `PGD`'s. torchattacks
    clips to x - eps and x + eps where PGD clips the difference: the same points up to one rounding.

    Args:
        model: as of `PGD`.
        settings: keywords of `PGD`, but for random_start.

    Raises:
        ValueError: as `PGD`.
    """

    name = "bim"

    def __init__(self, model: Callable[[Tensor], Tensor], *args: Any, **settings: Any) -> None:
        super().__init__(model, *args, random_start=False, **settings)
