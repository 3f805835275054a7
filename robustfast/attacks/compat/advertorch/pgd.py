"""PGD under each norm, and its forms without a random start."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Laplace

from robustfast.attacks.compat.advertorch.base import NORMS, Attack, Size
from robustfast.attacks.compat.clip_first import ClipFirst
from robustfast.attacks.compat.model import fresh_key, loss_of
from robustfast.attacks.compat.starts import box_then_ball
from robustfast.attacks.draws import uniform

__all__ = [
    "L1PGDAttack",
    "L2BasicIterativeAttack",
    "L2PGDAttack",
    "LinfBasicIterativeAttack",
    "LinfPGDAttack",
    "PGDAttack",
    "SparseL1DescentAttack",
]


class PGDAttack(Attack):
    """PGD under `ord` inf, 2 or 1.

    Under l2 it clips before it projects, under l1 after; without `l1_sparsity` an l1 step moves the largest entry
    alone, with it the share 1 - l1_sparsity. The starts are advertorch's: uniform in the box (linf); a uniform point of
    the image domain pulled into the ball, nearly always onto its edge (l2); a Laplace direction of a length that is
    uniform in [0, eps) (l1: there one length for the batch, here one for each sample).
    """

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, ord: float = np.inf,
        l1_sparsity: float | None = None, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(predict, loss_fn, clip_min, clip_max)
        assert isinstance(eps, (float, Tensor))
        assert isinstance(eps_iter, (float, Tensor))
        if ord not in NORMS:
            raise NotImplementedError("Only ord = inf, ord = 1 and ord = 2 have been implemented")
        self.eps = eps
        self.nb_iter = nb_iter
        self.eps_iter = eps_iter
        self.rand_init = rand_init
        self.ord = ord
        self.l1_sparsity = l1_sparsity
        self.targeted = targeted

    def _perturb(self, held: Any, x: Tensor, y: Tensor) -> Tensor:
        start = self._start(x) if self.rand_init else x
        entries = max(1, x[:1].numel())
        moved = 1 if self.l1_sparsity is None else max(1, int(np.round((1 - self.l1_sparsity) * entries)))
        attack = self._run(
            ClipFirst, held, eps=self.eps, step_size=self.eps_iter, steps=self.nb_iter, norm=NORMS[self.ord],
            q=moved / entries, random_start=False, loss=loss_of(self.loss_fn),
        )  # fmt: skip
        return attack(x, y, start=start)

    def _start(self, x: Tensor) -> Tensor:
        key, bounds = fresh_key(), (self.clip_min, self.clip_max)
        if self.ord == 2:
            return box_then_ball(x, self.eps, bounds, key)
        index = torch.arange(len(x), device=x.device)
        draws = uniform(index, tuple(x.shape[1:]), seed=key, dtype=x.dtype)
        rows = (-1, *[1] * (x.dim() - 1))
        eps = self.eps.reshape(rows) if isinstance(self.eps, Tensor) else self.eps
        if self.ord == np.inf:
            return (x + eps * (2 * draws - 1)).clamp(*bounds)
        # Draws are multiples of 2**-24: half a one keeps the inverse off the ends, which are infinite.
        direction = Laplace(x.new_zeros(()), x.new_ones(())).icdf((draws + 2**-25).clamp(max=1 - 2**-24))
        length = eps * uniform(index, (1,) * (x.dim() - 1), seed=key, step=1, dtype=x.dtype)
        return (x + direction / direction.flatten(1).abs().sum(1).reshape(rows) * length).clamp(*bounds)


class LinfPGDAttack(PGDAttack):
    """PGD under linf."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, np.inf, None, targeted
        )


class L2PGDAttack(PGDAttack):
    """PGD under l2."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 2, None, targeted
        )


class L1PGDAttack(PGDAttack):
    """PGD under l1, one entry a step."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 10.0, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = True, clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 1, None, targeted
        )


class SparseL1DescentAttack(PGDAttack):
    """PGD under l1 that moves a share of 1 - l1_sparsity of the entries."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.3, nb_iter: int = 40, eps_iter: Size = 0.01,
        rand_init: bool = False, clip_min: float = 0.0, clip_max: float = 1.0, l1_sparsity: float = 0.95,
        targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, rand_init, clip_min, clip_max, 1, l1_sparsity, targeted
        )


class LinfBasicIterativeAttack(PGDAttack):
    """PGD under linf from the image itself."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.1, nb_iter: int = 10, eps_iter: Size = 0.05,
        clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, False, clip_min, clip_max, np.inf, None, targeted
        )


class L2BasicIterativeAttack(PGDAttack):
    """PGD under l2 from the image itself."""

    def __init__(
        self, predict: Any, loss_fn: Any = None, eps: Size = 0.1, nb_iter: int = 10, eps_iter: Size = 0.05,
        clip_min: float = 0.0, clip_max: float = 1.0, targeted: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            predict, loss_fn, eps, nb_iter, eps_iter, False, clip_min, clip_max, 2, None, targeted
        )
